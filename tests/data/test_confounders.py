"""What predicts the label without the image, against scikit-learn, closed forms and columns of noise."""

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import cross_val_predict

from medxfer.data.confounders import ALL_TOGETHER, metadata_columns, predict_from_metadata
from medxfer.data.tables import read_csv


def _aurocs(table: pd.DataFrame, targets: np.ndarray, groups: np.ndarray | None = None, *, seed=0) -> dict[str, float]:
    """Return scikit-learn's AUROC of each candidate of a binary collection."""
    groups = np.arange(len(table)) if groups is None else groups
    found = predict_from_metadata(table, targets, groups, task="binary", seed=seed)
    for probs in found.values():
        assert probs.shape == (len(table), 2)
        assert ((probs >= 0) & (probs <= 1)).all()
    return {name: float(roc_auc_score(targets, probs[:, 1])) for name, probs in found.items()}


def _classes(rng: np.random.Generator, size: int, share: float = 0.5) -> np.ndarray:
    return (rng.permutation(size) < round(share * size)).astype(np.int64)


def _noise(rng: np.random.Generator, size: int) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "two": rng.choice(["a", "b"], size),
            "folders": rng.choice([f"folder {k}" for k in range(size // 6)], size),
            "missing": np.where(rng.random(size) < 0.4, np.nan, rng.normal(size=size)),
        }
    )


def test_two_values_have_the_auroc_of_their_table():
    rng = np.random.default_rng(0)
    for odds in ((0.9, 0.2), (0.6, 0.4), (0.5, 0.45), (0.02, 0.3)):
        targets = _classes(rng, 2000, 0.3)
        view = rng.random(2000) < np.where(targets == 1, *odds)
        in_closed_form = 0.5 + abs(view[targets == 1].mean() - view[targets == 0].mean()) / 2
        found = _aurocs(pd.DataFrame({"view": np.where(view, "AP", "PA")}), targets)["view"]
        assert found == pytest.approx(in_closed_form, abs=0.02)


def test_a_line_is_found_as_well_as_by_a_line():
    rng = np.random.default_rng(1)
    targets = _classes(rng, 1500)
    grey = rng.normal(size=1500) + 0.7 * targets
    line = cross_val_predict(LogisticRegression(), grey[:, np.newaxis], targets, cv=5, method="decision_function")
    found = _aurocs(pd.DataFrame({"grey": grey}), targets)["grey"]
    assert found == pytest.approx(roc_auc_score(targets, line), abs=0.02)


@pytest.mark.parametrize("shape", ["two widths each", "old and young", "one odd width", "many sizes in turn"])
def test_what_no_line_can_see_is_found(shape):
    rng = np.random.default_rng(2)
    targets = _classes(rng, 600)
    values = {
        "two widths each": np.where(targets == 1, rng.choice([512, 1024], 600), rng.choice([640, 2048], 600)),
        "old and young": np.where(targets == 1, rng.choice([-1, 1], 600) * 25, 0) + rng.normal(50, 5, 600),
        "one odd width": np.where(targets == 1, 1024, rng.normal(1024, 50, 600).round()),
        "many sizes in turn": 500 + 10 * rng.integers(0, 8, 600) + 5 * targets,
    }[shape]
    found = _aurocs(pd.DataFrame({"width": values, "noise": rng.normal(size=600)}), targets)
    assert found["width"] > 0.9
    assert found[ALL_TOGETHER] > 0.9
    assert found["noise"] < 0.6


def test_a_pair_tells_more_together():
    rng = np.random.default_rng(3)
    targets = _classes(rng, 1000)
    pair = pd.DataFrame({"a": rng.normal(size=1000) + targets, "b": rng.normal(size=1000) + targets})
    best = roc_auc_score(targets, pair.sum(axis=1))
    found = _aurocs(pair, targets)
    assert max(found["a"], found["b"]) < best - 0.03
    assert found[ALL_TOGETHER] == pytest.approx(best, abs=0.02)
    assert ALL_TOGETHER not in _aurocs(pair.drop(columns="b"), targets)


@pytest.mark.parametrize(("size", "share", "seeds"), [(60, 0.5, 20), (300, 0.1, 10)])
def test_noise_stays_around_one_half(size, share, seeds):
    found = []
    for seed in range(seeds):
        rng = np.random.default_rng((seed, size))
        found.append(_aurocs(_noise(rng, size), _classes(rng, size, share), seed=seed))
    for name, aurocs in pd.DataFrame(found).items():
        mean, error = np.mean(aurocs), np.std(aurocs) / np.sqrt(seeds)
        assert abs(mean - 0.5) < min(0.06, 4 * error), name


def test_pooled_scores_would_have_been_below_one_half():
    """The reason for ranks: what scikit-learn's pooled scores make of noise, which the test above would refuse."""
    found, pooled = [], []
    for seed in range(15):
        rng = np.random.default_rng((seed, 40))
        targets = _classes(rng, 40)
        two = rng.choice(["a", "b"], 40)
        scores = cross_val_predict(
            LogisticRegression(), (two == "a")[:, np.newaxis], targets, method="decision_function"
        )
        pooled.append(roc_auc_score(targets, scores))
        found.append(_aurocs(pd.DataFrame({"two": two}), targets, seed=seed)["two"])
    assert np.mean(pooled) < 0.475
    assert abs(np.mean(found) - 0.5) < 0.03


def test_a_patient_cannot_be_recognized():
    rng = np.random.default_rng(4)
    patients = np.repeat(np.arange(120), 5)
    targets = _classes(rng, 120)[patients]
    of_patients = rng.normal(size=120)
    table = pd.DataFrame(
        {
            "study": [f"study of {patient}" for patient in patients],
            "measured": of_patients[patients],
            "folder": [f"{patient // 2}" + "/a" for patient in patients],
            "site": np.array(["north", "south"])[_classes(rng, 120)[patients]],
        }
    )
    found = _aurocs(table, targets, patients)
    assert "study" not in found
    assert "folder" not in found
    assert found["measured"] < 0.65
    assert found["site"] < 0.65
    recognized = _aurocs(table, targets)  # each image by itself: what would have been seen
    assert recognized["study"] > 0.7


def test_texts_that_name_single_images_are_left_out():
    targets = _classes(np.random.default_rng(5), 200)
    table = pd.DataFrame({"file": [f"image {k}.png" for k in range(200)], "uid": [f"1.2.{k}.9" for k in range(200)]})
    assert _aurocs(table, targets) == {}
    lesions = [f"lesion {k // 2 if k % 4 < 2 else k}" for k in range(200)]
    assert _aurocs(pd.DataFrame({"lesion": lesions}), targets) == {}
    told = np.where(targets == 1, table["uid"], "")
    assert _aurocs(pd.DataFrame({"uid": told}), targets)["uid"] > 0.99  # whether there is one


@pytest.mark.parametrize("blank", ["", None, np.nan, "NaN", " n/a ", pd.NA])
def test_a_missing_value_is_a_category(blank):
    rng = np.random.default_rng(6)
    targets = _classes(rng, 300)
    missing = (targets == 1) & (rng.random(300) < 0.9)
    ages = [blank if gone else str(age) for gone, age in zip(missing, rng.integers(20, 90, 300), strict=True)]
    assert _aurocs(pd.DataFrame({"age": ages}), targets)["age"] >= roc_auc_score(targets, missing) - 0.03


@pytest.mark.parametrize(
    "write",
    [
        lambda value: f"{value:.0f}",
        lambda value: f" {value:.1f} ",
        lambda value: f"{value:.1f}".replace(".", ","),
        lambda value: f"{value:03.0f}Y",
        lambda value: f"{value:.0f} years" if value > 40 else f"{value:.0f}",
        lambda value: f"{value:.0f}" if value < 90 else "over 90",
        lambda value: f"{np.datetime64('2000-01-01') + int(100 * value)}",
        lambda value: f"{np.datetime64('2000-01-01') + int(100 * value)}".replace("-", ""),
        lambda value: pd.Timestamp("2000-01-01") + pd.Timedelta(days=100 * value),
        lambda value: (pd.Timestamp("2000-01-01") + pd.Timedelta(days=100 * value)).strftime("%d.%m.%Y"),
    ],
)
def test_texts_of_numbers_ages_and_dates_are_numbers(write):
    rng = np.random.default_rng(7)
    targets = _classes(rng, 500)
    ages = rng.uniform(20, 70, 500) + 25 * targets
    as_numbers = _aurocs(pd.DataFrame({"age": ages}), targets)["age"]
    assert as_numbers > 0.75
    written = pd.DataFrame({"age": [write(age) for age in ages]})
    assert _aurocs(written, targets)["age"] == pytest.approx(as_numbers, abs=0.02)


def test_ages_in_months_are_years():
    rng = np.random.default_rng(8)
    targets = _classes(rng, 400)
    ages = [f"{rng.integers(1, 12):03d}M" if target else f"{rng.integers(1, 12):03d}Y" for target in targets]
    assert _aurocs(pd.DataFrame({"age": ages}), targets)["age"] > 0.9


def test_rare_classes_and_few_patients():
    rng = np.random.default_rng(9)
    targets = np.zeros(400, dtype=np.int64)
    targets[:3] = 1
    table = pd.DataFrame({"scanner": np.where(targets == 1, "old", rng.choice(["new", "newer"], 400))})
    assert _aurocs(table, targets)["scanner"] > 0.95
    found = predict_from_metadata(table, targets + (np.arange(400) == 9) * 3, np.arange(400), task="multiclass", seed=0)
    assert found["scanner"].shape == (400, 4)
    assert roc_auc_score(targets == 1, found["scanner"][:, 1]) > 0.95
    assert (found["scanner"][:, 2] == 0.5).all()  # a class that nobody has
    three = np.arange(400) % 3
    assert np.isfinite(_aurocs(_noise(rng, 400), _classes(rng, 400), three)["two"])
    assert _aurocs(table, targets, np.arange(400) < 200) == {}  # one patient has all of class 1
    assert _aurocs(table, targets, np.zeros(400)) == {}


def test_each_class_and_each_label_is_judged_by_itself():
    rng = np.random.default_rng(10)
    classes = rng.integers(0, 3, 600)
    table = pd.DataFrame({"format": np.where(classes == 2, "DICOM", "PNG"), "noise": rng.normal(size=600)})
    found = predict_from_metadata(table, classes, np.arange(600), task="multiclass", seed=0)["format"]
    assert found.shape == (600, 3)
    assert roc_auc_score(classes == 2, found[:, 2]) > 0.99
    against_the_rest = 0.5 + (classes[classes != 0] == 2).mean() / 2
    assert roc_auc_score(classes == 0, found[:, 0]) == pytest.approx(against_the_rest, abs=0.02)

    labels = np.stack([classes == 2, rng.random(600) < 0.1, np.zeros(600)], axis=1).astype(np.float32)
    labels[rng.random(labels.shape) < 0.3] = np.nan
    labels[classes == 0, 0] = np.nan
    labels[:, 2] = np.where(rng.random(600) < 0.5, np.nan, 0)
    found = predict_from_metadata(table, labels, np.arange(600), task="multilabel", seed=0)["format"]
    known = ~np.isnan(labels[:, 0])
    assert roc_auc_score(labels[known, 0], found[known, 0]) > 0.99
    assert np.isfinite(found).all()
    assert (found[:, 2] == 0.5).all()


def test_what_is_unknown_teaches_nothing():
    """Rows whose label is unknown may change, without a change of the others' scores."""
    rng = np.random.default_rng(11)
    labels = _classes(rng, 200).astype(np.float32)[:, np.newaxis]
    labels[150:] = np.nan
    site = np.where(np.arange(200) < 150, rng.choice(["a", "b"], 200), "a")
    other = np.where(np.arange(200) < 150, site, "b")
    first, second = (
        predict_from_metadata(pd.DataFrame({"site": text}), labels, np.arange(200), task="multilabel", seed=0)["site"]
        for text in (site, other)
    )
    np.testing.assert_array_equal(first[:150], second[:150])


def test_odd_columns_are_judged_or_left_out():
    targets = _classes(np.random.default_rng(12), 200)
    columns = {
        "constant": ["x"] * 200,
        "one differs": ["x"] * 199 + ["y"],
        "all missing": [np.nan] * 200,
        "infinite": [np.inf, 1.0, -np.inf, 2.0] * 50,
        "huge": [*np.linspace(0, 1.7e308, 100), *np.linspace(-1.7e308, 0, 100)],
        "long": ["1" * 400, "2"] * 100,
        "lists": [[k % 3] for k in range(200)],
        "surrogates": pd.Series(["\udcff", "x"] * 100, dtype=object),
        "times": [pd.NaT if k % 5 == 0 else pd.Timestamp(2020, 1, 1 + k % 28) for k in range(200)],
        "with zone": pd.date_range("2020", periods=200, tz="Europe/Berlin"),
        "ancient": ["31/12/1500", "2020-02-30"] * 100,
        "categories": pd.Categorical(["a", "b", None, "a"] * 50),
        "nullable": pd.array([1, None, 3, 4] * 50, dtype="Int64"),
        "complex": [1j, 2.0] * 100,
        7: [True, False] * 100,
    }
    found = _aurocs(pd.DataFrame(columns), targets)
    assert set(found) == {*map(str, columns), ALL_TOGETHER} - {"constant", "one differs", "all missing"}
    assert predict_from_metadata(pd.DataFrame(columns).iloc[:0], targets[:0], targets[:0], task="binary", seed=0) == {}
    assert predict_from_metadata(pd.DataFrame(index=range(200)), targets, targets, task="binary", seed=0) == {}


def test_the_seed_alone_decides_and_the_order_of_columns_does_not():
    rng = np.random.default_rng(13)
    targets, table = _classes(rng, 150), _noise(rng, 150)
    groups = np.array([f"p{k // 2}" for k in range(150)])
    first = predict_from_metadata(table, targets, groups, task="binary", seed=1)
    again = predict_from_metadata(table.iloc[:, ::-1], targets, groups, task="binary", seed=1)
    other = predict_from_metadata(table, targets, groups, task="binary", seed=2)
    for name in table:
        np.testing.assert_array_equal(first[str(name)], again[str(name)])
        assert (first[str(name)] != other[str(name)]).any()


def test_large_collections_are_learned_from_a_part(monkeypatch):
    rng = np.random.default_rng(14)
    targets = _classes(rng, 3000, 0.1)
    table = pd.DataFrame({"grey": rng.normal(size=3000) + targets})
    whole = _aurocs(table, targets)["grey"]
    monkeypatch.setattr("medxfer.data.confounders.MAX_TRAINING_ROWS", 200)
    part = _aurocs(table, targets)["grey"]
    assert part != whole
    assert part == pytest.approx(whole, abs=0.03)


def test_columns_of_a_table_that_may_predict(tmp_path):
    rng = np.random.default_rng(15)
    written = pd.DataFrame(
        {
            "path": [f"images/{k}.png" for k in range(100)],
            "label": rng.choice(["sick", "well"], 100),
            "age": [f"{age:03d}Y" for age in rng.integers(20, 90, 100)],
            "view": rng.choice(["AP", "PA"], 100),
            "spacing": [f"{value:.5f}" for value in rng.uniform(0.1, 0.2, 100)],
            "date": [f"20200{1 + k // 28}{1 + k % 28:02d}" for k in range(100)],
            "day": [str(np.datetime64("2020-01-01") + k) for k in range(100)],
            "noted": ["yes", *[""] * 49] * 2,
            "number": [str(k) for k in range(100)],
            "uid": [f"1.2.840.{k}" for k in range(100)],
            "lesion": [f"L{k * 3 // 4}" for k in range(100)],
            "modality": ["CR"] * 100,
            "blank": [""] * 100,
        }
    )
    written.to_csv(tmp_path / "labels.csv", index=False)
    table, _ = read_csv(tmp_path / "labels.csv")
    found = metadata_columns(table, used=["path", "label", "patient_id"])
    assert found == ["age", "view", "spacing", "date", "day", "noted"]
    assert metadata_columns(table, used=list(written)) == []
