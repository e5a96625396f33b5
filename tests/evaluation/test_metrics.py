"""Every metric against scikit-learn's."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    balanced_accuracy_score,
    brier_score_loss,
    f1_score,
    recall_score,
    roc_auc_score,
    roc_curve,
)
from torchmetrics.functional.classification import binary_calibration_error, multiclass_calibration_error

from medxfer.evaluation.metrics import (
    BINS,
    build_epoch_metrics,
    decisions,
    one_against_rest,
    weighted_metrics,
    youden_thresholds,
)
from tests.evaluation.fixtures import NAMES, make_predictions

TASKS = ["binary", "multiclass", "multilabel"]


def thresholds_of(task: str) -> list[float]:
    return {"binary": [0.4], "multiclass": [0.2, 0.3, 0.25, 0.4], "multilabel": [0.3, 0.5, 0.6]}[task]


def classes(task: str, probs: np.ndarray, targets: np.ndarray) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Yield column, scores and truth of each class, by the definition of the tasks."""
    if task == "binary":
        yield 0, probs[:, 1], (targets == 1).astype(int)
    elif task == "multiclass":
        for k in range(probs.shape[1]):
            yield k, probs[:, k], (targets == k).astype(int)
    else:
        for k in range(probs.shape[1]):
            known = ~np.isnan(targets[:, k])
            yield k, probs[known, k], targets[known, k].astype(int)


def calibration_error(scores: np.ndarray, truth: np.ndarray) -> float:
    found = binary_calibration_error(torch.tensor(scores.copy()), torch.tensor(truth.copy()), n_bins=BINS)
    return float(found)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("task", TASKS)
def test_metrics_per_class_are_scikit_learns(task, seed):
    one = make_predictions(task, seed=seed)
    thresholds = thresholds_of(task)
    columns, _ = weighted_metrics(one.probs, one.targets, np.ones((1, len(one))), task=task, thresholds=thresholds)
    argmax = one.probs.argmax(axis=1)
    for k, scores, truth in classes(task, one.probs, one.targets):
        positive = scores >= thresholds[k]
        said = argmax == k if task == "multiclass" else positive
        expected = {
            "auroc": roc_auc_score(truth, scores),
            "average_precision": average_precision_score(truth, scores),
            "sensitivity": recall_score(truth, positive),
            "specificity": recall_score(1 - truth, ~positive),
            "f1": f1_score(truth, said),
            "brier": brier_score_loss(truth, scores),
            "ece": calibration_error(scores, truth),
            "balanced_accuracy": (recall_score if task == "multiclass" else balanced_accuracy_score)(truth, said),
        }
        assert {name: values[0, k] for name, values in columns.items()} == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_overall_metrics_are_scikit_learns(seed):
    one = make_predictions("multiclass", seed=seed)
    columns, overall = weighted_metrics(
        one.probs, one.targets, np.ones((1, len(one))), task="multiclass", thresholds=thresholds_of("multiclass")
    )
    said = one.probs.argmax(axis=1)
    assert overall["accuracy"][0] == pytest.approx(accuracy_score(one.targets, said))
    assert columns["balanced_accuracy"][0].mean() == pytest.approx(balanced_accuracy_score(one.targets, said))
    assert columns["f1"][0].mean() == pytest.approx(f1_score(one.targets, said, average="macro"))
    assert columns["auroc"][0].mean() == pytest.approx(roc_auc_score(one.targets, one.probs, multi_class="ovr"))
    expected = multiclass_calibration_error(torch.from_numpy(one.probs), torch.from_numpy(one.targets), 4, n_bins=BINS)
    assert overall["ece"][0] == pytest.approx(float(expected), abs=1e-6)


def test_accuracy_of_labels_counts_every_known_label_once():
    one = make_predictions("multilabel")
    _, overall = weighted_metrics(
        one.probs, one.targets, np.ones((1, len(one))), task="multilabel", thresholds=thresholds_of("multilabel")
    )
    known = ~np.isnan(one.targets)
    said = one.probs >= np.array(thresholds_of("multilabel"))
    assert overall["accuracy"][0] == pytest.approx((said == one.targets)[known].mean())


@pytest.mark.parametrize("task", TASKS)
def test_a_weight_of_n_is_an_image_that_occurs_n_times(task):
    one = make_predictions(task)
    settings = {"task": task, "thresholds": thresholds_of(task)}
    weights = np.random.default_rng(1).integers(0, 4, size=(6, len(one)))
    columns, overall = weighted_metrics(one.probs, one.targets, weights.astype(float), **settings)
    for row, counts in enumerate(weights):
        again = np.repeat(np.arange(len(one)), counts)
        ones = np.ones((1, len(again)))
        repeated, repeated_overall = weighted_metrics(one.probs[again], one.targets[again], ones, **settings)
        for name, values in columns.items():
            np.testing.assert_allclose(values[row], repeated[name][0], atol=1e-12, err_msg=name)
        for name, values in overall.items():
            assert values[row] == pytest.approx(repeated_overall[name][0])


@pytest.mark.parametrize(
    ("truth", "defined"),
    [
        (1, {"sensitivity": 0.5, "f1": 2 / 3, "brier": 0.2, "ece": 0.4}),
        (0, {"specificity": 0.5, "brier": 0.4, "ece": 0.6}),
    ],
)
def test_without_one_of_the_classes_what_is_about_the_other_is_defined(truth, defined):
    probs = np.array([[0.2, 0.8], [0.6, 0.4]])
    targets = np.array([truth, truth])
    columns, overall = weighted_metrics(probs, targets, np.ones((1, 2)), task="binary", thresholds=[0.5])
    found = {name: values[0, 0] for name, values in columns.items() if not np.isnan(values[0, 0])}
    assert found == pytest.approx(defined)
    assert overall["accuracy"][0] == 0.5


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("task", TASKS)
def test_thresholds_have_the_largest_youden_index_of_all(task, seed):
    one = make_predictions(task, seed=seed, size=60)
    found = youden_thresholds(one.probs, one.targets, task=task)
    for k, scores, truth in classes(task, one.probs, one.targets):
        false, true, _ = roc_curve(truth, scores)
        said = scores >= found[k]
        youden = said[truth == 1].mean() - said[truth == 0].mean()
        assert youden == pytest.approx((true - false).max())


def test_of_equally_good_thresholds_the_nearest_to_one_half_is_taken():
    probs = np.array([0.1, 0.2, 0.3, 0.9])
    assert youden_thresholds(np.stack([1 - probs, probs], 1), np.array([0, 0, 0, 1]), task="binary") == [0.6]


def test_a_class_that_validation_lacks_gets_one_half():
    probs = np.array([[0.3, 0.7], [0.2, 0.8]])
    assert youden_thresholds(probs, np.array([0, 0]), task="binary") == [0.5]


def test_a_constant_network_calls_everything_positive_or_nothing():
    probs = np.full((4, 2), 0.5)
    (threshold,) = youden_thresholds(probs, np.array([0, 1, 0, 1]), task="binary")
    assert threshold == 0.5


def test_decisions_by_task():
    probs = np.array([[0.3, 0.7], [0.45, 0.55]])
    assert decisions(probs, task="binary", thresholds=[0.6]).tolist() == [[1], [0]]
    assert decisions(probs, task="multilabel", thresholds=[0.4, 0.6]).tolist() == [[0, 1], [1, 0]]
    assert decisions(probs, task="multiclass", thresholds=[0.9, 0.9]).tolist() == [[0, 1], [0, 1]]


@pytest.mark.parametrize("task", TASKS)
def test_metrics_during_training_agree(task):
    one = make_predictions(task, size=90)
    metrics = build_epoch_metrics(task)
    for rows in np.array_split(np.arange(len(one)), 4):
        metrics.update(torch.from_numpy(one.probs[rows]), torch.from_numpy(one.targets[rows]))
    found = {name: float(value) for name, value in metrics.compute().items()}
    half = [0.5] * len(NAMES[task])
    columns, _ = weighted_metrics(
        one.probs, one.targets, np.ones((1, len(one))), task=task, thresholds=half[: 1 if task == "binary" else None]
    )
    assert found == pytest.approx({name: columns[name][0].mean() for name in found}, abs=1e-5)
    metrics.reset()
    metrics.update(torch.from_numpy(one.probs[:1]), torch.from_numpy(one.targets[:1]))
    assert np.isnan(float(metrics.compute()["auroc"]))


def test_unknown_labels_are_known_to_be_unknown():
    targets = np.array([[1.0, np.nan], [0.0, 1.0]])
    scores, truth, known = one_against_rest(np.full((2, 2), 0.5), targets, task="multilabel")
    assert known.tolist() == [[True, False], [True, True]]
    assert truth.tolist() == [[1, 0], [0, 1]]
    assert scores.shape == (2, 2)


def weighted_calibration_error(scores: np.ndarray, truth: np.ndarray, weights: np.ndarray) -> float:
    """Guo 2017, eq. 5, bin by bin; a bin holds its upper edge."""
    error = 0.0
    for number in range(BINS):
        lower, upper = number / BINS, (number + 1) / BINS
        inside = ((scores > lower) | ((number == 0) & (scores == 0))) & (scores <= upper)
        share = weights[inside].sum()
        if share:
            gap = np.average(truth[inside], weights=weights[inside]) - np.average(
                scores[inside], weights=weights[inside]
            )
            error += share / weights.sum() * abs(gap)
    return error


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("task", TASKS)
def test_weighted_metrics_are_scikit_learns_with_the_same_sample_weights(task, seed):
    one = make_predictions(task, seed=seed)
    probs = np.round(one.probs, 1) if task != "multiclass" else np.round(one.probs, 2)  # many equal scores
    thresholds, weights = thresholds_of(task), np.random.default_rng(seed).integers(0, 4, len(one)).astype(float)
    columns, overall = weighted_metrics(probs, one.targets, weights[np.newaxis], task=task, thresholds=thresholds)
    hits, counted = [], []
    for k, scores, truth in classes(task, probs, one.targets):
        known = ~np.isnan(one.targets[:, k]) if task == "multilabel" else np.ones(len(one), dtype=bool)
        w, positive = {"sample_weight": weights[known]}, scores >= thresholds[k]
        said = (probs.argmax(axis=1) == k)[known] if task == "multiclass" else positive
        expected = {
            "auroc": roc_auc_score(truth, scores, **w),
            "average_precision": average_precision_score(truth, scores, **w),
            "sensitivity": recall_score(truth, positive, **w),
            "specificity": recall_score(1 - truth, ~positive, **w),
            "f1": f1_score(truth, said, **w),
            "brier": brier_score_loss(truth, scores, **w),
            "ece": weighted_calibration_error(scores, truth, weights[known]),
            "balanced_accuracy": (recall_score if task == "multiclass" else balanced_accuracy_score)(truth, said, **w),
        }
        assert {name: values[0, k] for name, values in columns.items()} == pytest.approx(expected, abs=1e-12)
        hits.extend(said == truth)
        counted.extend(weights[known])
    if task == "multiclass":
        chosen = probs.argmax(axis=1)
        assert overall["accuracy"][0] == pytest.approx(accuracy_score(one.targets, chosen, sample_weight=weights))
        expected = weighted_calibration_error(probs.max(axis=1), chosen == one.targets, weights)
        assert overall["ece"][0] == pytest.approx(expected)
    else:
        assert overall["accuracy"][0] == pytest.approx(np.average(hits, weights=counted))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("task", TASKS)
def test_thresholds_are_those_of_a_search_through_all(task, seed):
    one = make_predictions(task, seed=seed, size=50)
    one = replace(one, probs=np.round(one.probs, 2))  # equal scores of both kinds
    found = youden_thresholds(one.probs, one.targets, task=task)
    assert len(found) == (1 if task == "binary" else len(NAMES[task]))
    for k, scores, truth in classes(task, one.probs, one.targets):
        values = sorted(set(scores))
        best = (-1.0, 0.0, np.nan)
        for cut in [values[0], *((low + high) / 2 for low, high in zip(values, values[1:], strict=False))]:  # noqa: RUF007
            youden = (scores[truth == 1] >= cut).mean() + (scores[truth == 0] < cut).mean() - 1
            best = max(best, (round(youden, 9), -abs(cut - 0.5), cut))
        assert found[k] == pytest.approx(best[2])


def test_a_class_with_one_kind_of_known_label_is_left_out_of_the_average_during_training():
    one = make_predictions("multilabel", size=60)
    one.targets[:, 1] = np.where(np.isnan(one.targets[:, 1]), np.nan, 0)
    metrics = build_epoch_metrics("multilabel")
    metrics.update(torch.from_numpy(one.probs), torch.from_numpy(one.targets))
    kept = [(scores, truth) for k, scores, truth in classes("multilabel", one.probs, one.targets) if k != 1]
    expected = {
        "auroc": np.mean([roc_auc_score(truth, scores) for scores, truth in kept]),
        "average_precision": np.mean([average_precision_score(truth, scores) for scores, truth in kept]),
        "balanced_accuracy": np.mean([balanced_accuracy_score(truth, scores >= 0.5) for scores, truth in kept]),
    }
    assert {name: float(value) for name, value in metrics.compute().items()} == pytest.approx(expected, abs=1e-6)


def test_a_label_that_nobody_knows_is_not_defined():
    one = make_predictions("multilabel")
    one.targets[:, 1] = np.nan
    columns, _ = weighted_metrics(
        one.probs, one.targets, np.ones((1, len(one))), task="multilabel", thresholds=[0.5] * 3
    )
    assert all(np.isnan(values[0, 1]) and np.isfinite(values[0, [0, 2]]).all() for values in columns.values())


def test_scores_that_are_not_finite_rank_nobody():
    """torchmetrics would rank them in the order of the table."""
    metrics = build_epoch_metrics("binary")
    metrics.update(torch.full((6, 2), torch.nan), torch.tensor([1, 1, 1, 0, 0, 0]))
    assert all(torch.isnan(value) for value in metrics.compute().values())
