"""Splits by patient, on random collections and against scikit-learn."""

from typing import NamedTuple

import numpy as np
import pytest
from sklearn.model_selection import StratifiedGroupKFold

from medxfer.data.splits import SPLITS, check_split, split_by_fold, split_by_group, split_table, strata
from medxfer.errors import DataError


class Sample(NamedTuple):
    targets: np.ndarray
    groups: np.ndarray
    names: list[str]


def _sample(seed: int) -> Sample:
    """Draw a feasible collection: 60 to 200 patients with 1 to 6 images, 2 to 5 classes; every second is multilabel."""
    rng = np.random.default_rng(seed)
    patients, classes = int(rng.integers(60, 200)), int(rng.integers(2, 6))
    group = np.repeat(np.arange(patients), rng.integers(1, int(rng.integers(2, 8)), size=patients))
    disease = rng.choice(classes, size=patients, p=rng.dirichlet(np.full(classes, 3.0)))
    disease[: 5 * classes] = np.arange(5 * classes) % classes  # each class has patients of its own
    label = disease[group]
    other = (rng.random(len(group)) < 0.1) & (group >= 5 * classes)
    label[other] = rng.integers(classes, size=other.sum())
    targets = label
    if seed % 2:
        targets = (rng.random((len(group), classes)) < 0.08 * (group >= 5 * classes)[:, None]).astype(np.float32)
        targets[rng.random(targets.shape) < 0.05] = np.nan
        targets[np.arange(len(group)), label] = 1
    order = rng.permutation(len(group))
    return Sample(targets[order], np.array([f"P{g:03d}" for g in group[order]]), [f"class {k}" for k in range(classes)])


def _positive(targets: np.ndarray) -> np.ndarray:
    """Return (N, K) bool: which image shows which class."""
    return targets == 1 if targets.ndim == 2 else targets[:, None] == np.arange(targets.max() + 1)


def _split(sample: Sample, *, seed: int = 0, val: float = 0.15, test: float = 0.15, tries: int = 8) -> np.ndarray:
    return split_by_group(
        sample.targets, sample.groups, val_fraction=val, test_fraction=test, seed=seed, class_names=sample.names,
        tries=tries,
    )  # fmt: skip


def _assert_sound(sample: Sample, splits: np.ndarray) -> None:
    """Assert that no patient crosses and that every class is everywhere."""
    sides = {group: set(splits[sample.groups == group]) for group in np.unique(sample.groups)}
    assert all(len(found) == 1 for found in sides.values())
    for split in SPLITS:
        assert _positive(sample.targets)[splits == split].any(axis=0).all()


@pytest.mark.parametrize("seed", range(120))
def test_random_collections_are_split_soundly_closely_and_reproducibly(seed):
    sample = _sample(seed)
    rng = np.random.default_rng((seed, 1))
    val, test = (float(f) for f in rng.uniform(0.1, 0.25, size=2))
    splits = _split(sample, seed=seed, val=val, test=test)
    assert splits.shape == sample.groups.shape
    _assert_sound(sample, splits)
    # No split can be closer than the size of a patient; there are at most 6 images of each.
    slack = 0.02 + 6 / len(splits)
    for split, fraction in zip(SPLITS, (1 - val - test, val, test), strict=True):
        assert abs((splits == split).mean() - fraction) < slack
    np.testing.assert_array_equal(_split(sample, seed=seed, val=val, test=test), splits)


@pytest.mark.parametrize("seed", range(10))
def test_classes_are_balanced_better_than_by_chance(seed):
    sample = _sample(seed)
    positive = _positive(sample.targets)
    wanted = dict(zip(SPLITS, (0.7, 0.15, 0.15), strict=True))

    def deviation(splits: np.ndarray) -> float:
        shares = [np.abs(positive[splits == s].sum(axis=0) / positive.sum(axis=0) - f) for s, f in wanted.items()]
        return float(np.max(shares))

    rng = np.random.default_rng(seed)
    groups, members = np.unique(sample.groups, return_inverse=True)
    by_chance = [deviation(rng.choice(SPLITS, size=len(groups), p=[0.7, 0.15, 0.15])[members]) for _ in range(200)]
    assert deviation(_split(sample, tries=100)) < np.percentile(by_chance, 5)


@pytest.mark.parametrize("seed", [0, 1])
def test_another_seed_gives_another_split(seed):
    sample = _sample(seed)
    assert not np.array_equal(_split(sample, seed=1), _split(sample, seed=2))


def test_names_of_patients_do_not_matter_if_their_order_is_kept():
    sample = _sample(0)
    renamed = sample._replace(groups=np.array([f"Q{group}" for group in sample.groups]))
    np.testing.assert_array_equal(_split(renamed), _split(sample))


def test_the_smallest_feasible_collection_is_split():
    sample = Sample(np.array([0, 1] * 3), np.array(list("aabbcc")), ["x", "y"])
    for seed in range(20):
        splits = _split(sample, seed=seed)
        _assert_sound(sample, splits)
        assert sorted(splits) == ["test", "test", "train", "train", "val", "val"]


def test_a_rare_class_is_spread_over_all_splits():
    targets = np.array([0] * 300 + [1] * 3)
    sample = Sample(targets, np.arange(303), ["common", "rare"])
    for seed in range(5):
        splits = _split(sample, seed=seed)
        assert sorted(splits[targets == 1]) == ["test", "train", "val"]
        assert (splits == "test").mean() == pytest.approx(0.15, abs=0.01)


@pytest.mark.parametrize(("val", "test", "absent"), [(0.2, 0.0, "test"), (0.0, 0.2, "val")])
def test_a_fraction_of_0_leaves_a_split_empty_and_needs_fewer_patients(val, test, absent):
    sample = Sample(np.array([0] * 30 + [1] * 2), np.arange(32), ["x", "y"])
    splits = _split(sample, val=val, test=test)
    assert absent not in splits
    assert set(splits[sample.targets == 1]) == set(SPLITS) - {absent}


def test_a_patient_with_many_images_is_not_torn_apart():
    groups = np.array([0] * 100 + list(range(1, 61)))
    sample = Sample(np.arange(160) % 2, groups, ["x", "y"])
    splits = _split(sample)
    _assert_sound(sample, splits)
    assert set(splits[groups == 0]) == {"train"}


@pytest.mark.parametrize("patients", [1, 2])
@pytest.mark.parametrize("multilabel", [False, True])
def test_a_class_with_too_few_patients_is_named_with_their_number(patients, multilabel):
    label = np.array([0] * 40 + [1] * 6)  # six images, but of one or two patients
    groups = np.array([f"a{i}" for i in range(40)] + [f"b{i % patients}" for i in range(6)])
    targets = np.eye(2, dtype=np.float32)[label] if multilabel else label
    with pytest.raises(DataError) as caught:
        _split(Sample(targets, groups, ["clear", "opacity"]))
    text = str(caught.value)
    assert f"opacity has {patients} of the 3 patients" in text
    assert "clear has" not in text
    assert "collect more, or join or drop these classes" in text


def test_all_classes_that_are_too_rare_are_named():
    targets = np.array([0] * 30 + [1] * 2 + [2])
    with pytest.raises(DataError) as caught:
        _split(Sample(targets, np.arange(33), ["a", "b", "c"]))
    assert "b has 2 of the 3" in str(caught.value)
    assert "c has 1 of the 3" in str(caught.value)


@pytest.mark.parametrize(
    "absent",
    [1, 2],
)
def test_a_class_without_images_is_named(absent):
    targets = np.array([k for k in range(3) if k != absent] * 10)
    with pytest.raises(DataError, match=f"class {absent} has 0 of the 3"):
        _split(Sample(targets, np.arange(20), ["class 0", "class 1", "class 2"]))


def test_the_stratum_is_the_rarest_positive_label():
    targets = np.array([[1, 1, 0], [1, 0, np.nan], [0, 0, 0], [1, 0, 1], [1, 1, 0], [np.nan, np.nan, 0]])
    assert strata(targets).tolist() == [1, 0, 3, 2, 1, 3]
    assert strata(np.array([2, 0, 1])).tolist() == [2, 0, 1]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("folds", [3, 5])
def test_folds_are_those_of_scikit_learn(seed, folds):
    sample = _sample(seed)
    splitter = StratifiedGroupKFold(n_splits=folds, shuffle=True, random_state=seed)
    expected = [rows for _, rows in splitter.split(sample.groups, strata(sample.targets), sample.groups)]
    for fold in range(folds):
        splits = split_by_fold(
            sample.targets, sample.groups, folds=folds, fold=fold, seed=seed, class_names=sample.names
        )
        assert set(np.flatnonzero(splits == "test")) == set(expected[fold])
        assert set(np.flatnonzero(splits == "val")) == set(expected[(fold + 1) % folds])
        assert (splits != "").all()
        _assert_sound(sample, splits)


def test_each_image_is_tested_and_validated_in_exactly_one_fold():
    sample = _sample(0)
    splits = np.stack(
        [split_by_fold(sample.targets, sample.groups, folds=4, fold=fold, seed=0, class_names=sample.names)
         for fold in range(4)]
    )  # fmt: skip
    for split, number in (("test", 1), ("val", 1), ("train", 2)):
        assert ((splits == split).sum(axis=0) == number).all()


@pytest.mark.parametrize(
    ("targets", "groups", "text"),
    [
        (np.array([0, 1] * 4), np.array([0, 0, 0, 0, 1, 1, 1, 1]), "data.folds is 3, but there are only 2 patients"),
        (np.array([0] * 10 + [1] * 2), np.arange(12), "the split train has no image of 'opacity'"),
        (np.array([0] * 10 + [1] * 6), np.array([*range(10), 10, 10, 10, 11, 11, 11]), "has no image of 'opacity'"),
    ],
    ids=["too few patients", "too few images of a class", "too few patients of a class"],
)
def test_infeasible_folds_are_refused(targets, groups, text):
    with pytest.raises(DataError, match=text):
        split_by_fold(targets, groups, folds=3, fold=0, seed=0, class_names=["clear", "opacity"])


def test_a_given_split_is_checked():
    sample = _sample(0)
    splits = _split(sample)
    check_split(splits, sample.targets, class_names=sample.names)
    rarest = int(_positive(sample.targets).sum(axis=0).argmin())
    moved = np.where((splits == "val") & (_positive(sample.targets)[:, rarest] == 1), "train", splits)
    with pytest.raises(DataError, match=f"the split val has no image of '{sample.names[rarest]}'"):
        check_split(moved, sample.targets, class_names=sample.names)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("has_patients", [True, False])
def test_the_table_of_a_split_counts_images_patients_and_classes(seed, has_patients):
    sample = _sample(seed)
    splits = _split(sample)
    patients = sample.groups if has_patients else None
    text = split_table(splits, sample.targets, patients, class_names=sample.names)
    header, *lines = text.splitlines()
    assert ("patients" in header) == has_patients
    assert all(name in header for name in sample.names)
    for split, line in zip(SPLITS, lines, strict=True):
        chosen = splits == split
        expected = [split, str(chosen.sum()), f"{chosen.mean():.1%}"]
        expected += [str(len(set(sample.groups[chosen])))] if has_patients else []
        assert line.split() == expected + [str(n) for n in _positive(sample.targets)[chosen].sum(axis=0)]
