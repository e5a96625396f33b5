"""The bootstrap over patients."""

import numpy as np
import pytest
from scipy.stats import bootstrap, norm, skew, t
from sklearn.metrics import average_precision_score, recall_score, roc_auc_score

from medxfer.evaluation.intervals import (
    _acceleration,
    bca_interval,
    bootstrap_counts,
    left_out_counts,
    metrics_with_intervals,
)
from medxfer.evaluation.score_intervals import auroc_interval, proportion_interval
from tests.evaluation.fixtures import make_predictions

SETTINGS = {"task": "binary", "thresholds": [0.5], "seed": 1}


def two_columns(scores: np.ndarray) -> np.ndarray:
    return np.stack([1 - scores, scores], axis=1)


def test_groups_are_drawn_whole_and_as_often_as_there_are_groups():
    groups = np.array(["a", "b", "a", "c", "b", "a"])
    counts = np.concatenate(list(bootstrap_counts(groups, 6, resamples=500, seed=0)))
    assert counts.shape == (500, 6)
    assert (counts[:, 0] == counts[:, 2]).all()
    assert (counts[:, 0] == counts[:, 5]).all()
    assert (counts[:, 1] == counts[:, 4]).all()
    assert (counts[:, [0, 1, 3]].sum(axis=1) == 3).all()
    assert counts[:, 0].var() == pytest.approx(3 * (1 / 3) * (2 / 3), abs=0.1)  # binomial


def test_chunks_do_not_change_the_draws(monkeypatch):
    whole = np.concatenate(list(bootstrap_counts(None, 50, resamples=40, seed=3)))
    monkeypatch.setattr("medxfer.evaluation.intervals.MAX_NUMBERS", 50 * 7)
    chunks = list(bootstrap_counts(None, 50, resamples=40, seed=3))
    assert len(chunks) == 6
    assert np.array_equal(np.concatenate(chunks), whole)


def test_every_group_is_left_out_once(monkeypatch):
    monkeypatch.setattr("medxfer.evaluation.intervals.MAX_NUMBERS", 8)
    counts = np.concatenate(list(left_out_counts(np.array(["a", "b", "a", "c"]), 4)))
    assert counts.tolist() == [[0, 1, 0, 1], [1, 0, 1, 1], [1, 1, 1, 0]]


def test_of_many_groups_one_part_is_left_out_after_the_other(monkeypatch):
    monkeypatch.setattr("medxfer.evaluation.intervals.MAX_PARTS", 10)
    groups = np.repeat(np.arange(34), 2)
    counts = np.concatenate(list(left_out_counts(groups, 68)))
    assert counts.shape == (10, 68)
    assert (counts[:, ::2] == counts[:, 1::2]).all()
    assert ((counts == 0).sum(axis=0) == 1).all()
    assert set((counts == 0).sum(axis=1)) == {6, 8}


@pytest.mark.parametrize("parts", [100, 1000])
def test_parts_give_the_acceleration_of_single_groups(monkeypatch, parts):
    """On average: that of a mean is the skewness over 6·√n, and parts differ by √15/6 over their number."""
    monkeypatch.setattr("medxfer.evaluation.intervals.MAX_PARTS", parts)
    found, expected = [], []
    for seed in range(30):
        sample = np.random.default_rng(seed).exponential(size=4000)
        expected.append(skew(sample) / 6 / np.sqrt(len(sample)))
        means = [part @ sample / part.sum(axis=1) for part in left_out_counts(None, len(sample))]
        found.append(_acceleration(np.concatenate(means)))
    errors = np.array(found) - expected
    assert errors.std() == pytest.approx(np.sqrt(15) / 6 / parts, rel=0.4)
    assert abs(errors.mean()) < 3 * errors.std() / np.sqrt(30)


def test_parts_of_the_groups_hardly_move_an_interval(monkeypatch):
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 2, 2500)
    scores = norm.cdf(rng.normal(truth, 1.0) - 0.5)
    parts, _ = metrics_with_intervals(two_columns(scores), truth, None, resamples=1000, **SETTINGS)
    monkeypatch.setattr("medxfer.evaluation.intervals.MAX_PARTS", 2500)
    single, _ = metrics_with_intervals(two_columns(scores), truth, None, resamples=1000, **SETTINGS)
    for name, (value, low, high) in single.items():
        assert parts[name][0] == value
        assert parts[name][1:] == pytest.approx((low, high), abs=0.02 * (high - low)), name


def test_the_interval_is_scipys_bca_but_for_the_expansion():
    """With thousands of groups nothing is left to expand."""
    sample = np.random.default_rng(0).exponential(size=2000)
    rng = np.random.default_rng(1)
    found = bootstrap((sample,), np.mean, method="BCa", n_resamples=4000, rng=rng)
    jackknife = (sample.sum() - sample) / (len(sample) - 1)
    value, low, high = bca_interval(sample.mean(), found.bootstrap_distribution, jackknife, number=len(sample))
    assert value == sample.mean()
    assert (low, high) == pytest.approx(tuple(found.confidence_interval), abs=2e-4)


def test_few_groups_expand_the_interval_to_students_t():
    """The bootstrap of a mean is normal with variance s²·(n − 1)/n², so that t·s/√n is what must come out."""
    sample = np.random.default_rng(2).normal(size=12)
    n, spread = len(sample), sample.std(ddof=1)
    normal = norm.ppf((np.arange(20_000) + 0.5) / 20_000)
    resampled = sample.mean() + normal * spread * np.sqrt((n - 1) / n**2)
    _, low, high = bca_interval(sample.mean(), resampled, np.empty(0), number=n)
    half = t.ppf(0.975, n - 1) * spread / np.sqrt(n)
    assert (low, high) == pytest.approx((sample.mean() - half, sample.mean() + half), abs=1e-3)


@pytest.mark.parametrize("task", ["binary", "multiclass", "multilabel"])
def test_intervals_hold_their_value_and_repeat_with_the_seed(task):
    one = make_predictions(task, size=200)
    thresholds = [0.5] * (1 if task == "binary" else len(one.class_names))
    settings = {"task": task, "thresholds": thresholds, "resamples": 300}
    averaged, per_class = metrics_with_intervals(one.probs, one.targets, one.groups, seed=5, **settings)
    again, _ = metrics_with_intervals(one.probs, one.targets, one.groups, seed=5, **settings)
    assert averaged == again
    for name, (value, low, high) in averaged.items():
        if name == "ece":  # resampling inflates a calibration error, which is never negative
            continue
        assert low <= value <= high, name
    assert {len(values) for values in per_class.values()} == {len(thresholds)}


@pytest.mark.parametrize("copies", [1, 4])
def test_copies_of_each_patients_image_do_not_narrow_the_interval(copies):
    rng = np.random.default_rng(0)
    truth = np.arange(100) % 2
    scores = 1 / (1 + np.exp(-rng.normal(truth, 1.0)))
    rows = np.repeat(np.arange(100), copies)
    averaged, _ = metrics_with_intervals(
        two_columns(scores[rows]), truth[rows], rows.astype(str), resamples=2000, **SETTINGS
    )
    single, _ = metrics_with_intervals(two_columns(scores), truth, None, resamples=2000, **SETTINGS)
    width, expected = (one["auroc"][2] - one["auroc"][1] for one in (averaged, single))
    assert width == pytest.approx(expected, rel=0.15)


def test_perfect_scores_have_an_interval():
    """No resample of them holds a mistake; other patients might."""
    truth = np.arange(40) % 2
    averaged, _ = metrics_with_intervals(two_columns(truth * 0.9 + 0.05), truth, None, resamples=200, **SETTINGS)
    assert averaged["auroc"] == (1.0, *auroc_interval(1.0, 20, 20))
    assert averaged["auroc"][1] < 0.95


@pytest.mark.parametrize("patients", [1, 2])
def test_too_few_patients_have_no_interval_but_a_value(patients):
    truth = np.array([0, 1] * 5)
    groups = np.zeros(10, dtype=int) if patients == 1 else truth
    averaged, _ = metrics_with_intervals(
        two_columns(np.linspace(0.1, 0.9, 10)), truth, groups, resamples=60, **SETTINGS
    )
    value, low, high = averaged["auroc"]
    assert 0 <= value <= 1
    if patients == 2:  # half of the resamples hold one class only: fewer than 50 are left
        assert np.isnan(low)
        assert np.isnan(high)


def test_a_missing_class_has_no_value():
    averaged, per_class = metrics_with_intervals(
        two_columns(np.linspace(0.1, 0.9, 8)), np.zeros(8, dtype=int), None, resamples=60, **SETTINGS
    )
    assert np.isnan(averaged["auroc"]).all()
    assert np.isnan(per_class["sensitivity"][0]).all()


def test_intervals_cover_the_truth_in_simulation():
    """600 studies of 80 patients with one to three images that share the patient's label and part of the noise."""
    rng = np.random.default_rng(0)
    shift = 1.2
    true_auroc, true_sensitivity = norm.cdf(shift / np.sqrt(2)), norm.cdf(shift / 2)
    studies, covered = 600, {"auroc": 0, "sensitivity": 0, "specificity": 0}
    for study in range(studies):
        patients = np.repeat(np.arange(80), rng.integers(1, 4, size=80))
        truth = patients % 2
        shared, own = rng.normal(size=80)[patients], rng.normal(size=len(patients))
        score = np.sqrt(0.6) * shared + np.sqrt(0.4) * own + shift * truth
        probs = two_columns(norm.cdf(score - shift / 2))  # 0.5 lies in the middle
        averaged, _ = metrics_with_intervals(probs, truth, patients, resamples=600, **{**SETTINGS, "seed": study})
        for name, true in (("auroc", true_auroc), ("sensitivity", true_sensitivity), ("specificity", true_sensitivity)):
            _, low, high = averaged[name]
            covered[name] += low <= true <= high
    # The standard error of one coverage of 95 % over 600 studies is 0.9 points.
    shares = {name: count / studies for name, count in covered.items()}
    assert all(0.90 <= share <= 0.985 for share in shares.values()), shares
    assert 0.93 <= np.mean(list(shares.values())) <= 0.97


def resampled_one_by_one(scores: np.ndarray, truth: np.ndarray, counts: np.ndarray) -> dict[str, np.ndarray]:
    """scikit-learn's metrics of each resample in turn; NaN without one of the classes."""
    values = []
    for weights in counts.astype(int):
        rows = np.repeat(np.arange(len(truth)), weights)
        y, s = truth[rows], scores[rows]
        ranking = [roc_auc_score(y, s), average_precision_score(y, s)] if len(set(y)) == 2 else [np.nan] * 2
        values.append([*ranking, recall_score(y, s >= 0.5) if y.any() else np.nan])
    return dict(zip(("auroc", "average_precision", "sensitivity"), np.transpose(values), strict=True))


@pytest.mark.parametrize("positives", [3, 30])
def test_intervals_are_those_of_a_loop_over_resamples_without_those_that_lack_a_class(positives):
    """With three positives of 60 patients a resample in twenty has none."""
    rng = np.random.default_rng(positives)
    patients = np.repeat(np.arange(60), rng.integers(1, 3, size=60))
    truth = (patients < positives).astype(int)
    scores = np.round(1 / (1 + np.exp(-rng.normal(truth, 1.0))), 2)
    draw = {"resamples": 300, "seed": 1}
    averaged, _ = metrics_with_intervals(two_columns(scores), truth, patients, task="binary", thresholds=[0.5], **draw)
    again = resampled_one_by_one(scores, truth, np.concatenate(list(bootstrap_counts(patients, len(truth), **draw))))
    without = resampled_one_by_one(scores, truth, np.concatenate(list(left_out_counts(patients, len(truth)))))
    assert np.isnan(again["auroc"]).any() == (positives == 3)
    for name, resampled in again.items():
        value = resampled_one_by_one(scores, truth, np.ones((1, len(truth))))[name][0]
        expected = bca_interval(value, resampled, without[name], number=60)
        if positives == 3:  # too few for a bootstrap
            closed = proportion_interval(value, 3) if name != "auroc" else auroc_interval(value, 3, 57)
            expected = (value, *closed)
        assert averaged[name] == pytest.approx(expected, abs=1e-9)


def test_images_taken_for_patients_would_narrow_the_interval():
    """Four copies of each image halve the width: what grouping by patient prevents."""
    rng = np.random.default_rng(0)
    truth = np.arange(100) % 2
    rows = np.repeat(np.arange(100), 4)
    scores = two_columns(1 / (1 + np.exp(-rng.normal(truth, 1.0))))[rows]
    widths = []
    for groups in (rows, None):
        averaged, _ = metrics_with_intervals(scores, truth[rows], groups, resamples=2000, **SETTINGS)
        widths.append(averaged["auroc"][2] - averaged["auroc"][1])
    assert widths[1] / widths[0] == pytest.approx(0.5, abs=0.06)


@pytest.mark.parametrize("task", ["binary", "multiclass", "multilabel"])
def test_one_patient_has_values_and_no_interval(task):
    one = make_predictions(task)
    thresholds = [0.5] * (1 if task == "binary" else len(one.class_names))
    averaged, per_class = metrics_with_intervals(
        one.probs, one.targets, np.zeros(len(one)), task=task, thresholds=thresholds, resamples=60, seed=0
    )
    for value, low, high in (*averaged.values(), *(v for values in per_class.values() for v in values)):
        assert 0 <= value <= 1
        assert np.isnan([low, high]).all()


def test_perfect_decisions_have_an_interval_and_no_warning():
    truth = np.arange(40) % 2
    averaged, per_class = metrics_with_intervals(two_columns(truth * 1.0), truth, None, resamples=200, **SETTINGS)
    for name in ("average_precision", "sensitivity", "specificity", "balanced_accuracy", "accuracy", "f1"):
        value, low, high = averaged[name]
        assert (value, high) == pytest.approx((1.0, 1.0)), name
        assert 0.8 < low < 0.95, name
    assert averaged["brier"] == averaged["ece"] == (0.0, 0.0, 0.0)
    assert per_class["auroc"] == [averaged["auroc"]]


@pytest.mark.parametrize("task", ["multiclass", "multilabel"])
def test_an_average_is_over_the_classes_that_the_data_define(task):
    one = make_predictions(task, size=150)
    targets = one.targets.copy()
    if task == "multiclass":
        targets[targets == 2] = 0
    else:
        targets[:, 2] = np.where(np.isnan(targets[:, 2]), np.nan, 1.0)
    averaged, per_class = metrics_with_intervals(
        one.probs, targets, None, task=task, thresholds=[0.5] * len(one.class_names), resamples=200, seed=0
    )
    values = [value for value, _, _ in per_class["auroc"]]
    assert np.isnan(per_class["auroc"][2]).all()
    assert averaged["auroc"][0] == pytest.approx(np.nanmean(values))
    assert averaged["auroc"][1] < averaged["auroc"][0] < averaged["auroc"][2]


@pytest.mark.parametrize("resamples", [49, 50])
def test_fewer_than_fifty_resamples_give_no_interval(resamples):
    _, low, high = bca_interval(0.5, np.linspace(0, 1, resamples), np.empty(0), number=10)
    assert np.isnan([low, high]).tolist() == [resamples < 50] * 2


@pytest.mark.parametrize(("positives", "negatives", "shift"), [(30, 30, 3.3), (4, 40, 2.0)])
def test_intervals_cover_near_the_edge_and_with_few_patients(positives, negatives, shift):
    """AUROC 0.99 and 0.92; a bootstrap alone covers 87 % and less, often with an interval of no width."""
    true = {"auroc": norm.cdf(shift / np.sqrt(2)), "sensitivity": norm.cdf(shift / 2)}
    truth = np.repeat([1, 0], [positives, negatives])
    studies, covered = 300, dict.fromkeys(true, 0)
    for study in range(studies):
        score = np.random.default_rng(study).normal(size=len(truth)) + shift * truth - shift / 2
        averaged, _ = metrics_with_intervals(
            two_columns(norm.cdf(score)), truth, None, resamples=100, **{**SETTINGS, "seed": study}
        )
        for name, value in true.items():
            _, low, high = averaged[name]
            covered[name] += low <= value <= high
            assert high - low > 0.01
    assert all(0.92 <= count / studies <= 1.0 for count in covered.values()), covered
