"""Classification metrics: over the validation split during training, and for many bootstrap resamples at once.

Every metric of `weighted_metrics` takes a weight per image and resample, so that the value on the data (weights 1)
and on its resamples (weights: how often an image was drawn) come from the same lines; the tests hold them to
scikit-learn's.
"""

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.functional.classification import binary_auroc, binary_average_precision
from torchmetrics.utilities import dim_zero_cat

BINS = 15
"""Equal-width bins of the calibration error (Guo 2017)."""

PER_CLASS = (
    "auroc", "average_precision", "sensitivity", "specificity", "balanced_accuracy", "f1", "brier", "ece",
)  # fmt: skip
"""Metrics of one class against the rest."""

Columns = dict[str, np.ndarray]
"""Metric → (R, C): its value for each resample and class; NaN where it is not defined."""


class EpochMetrics(Metric):
    """AUROC, average precision and balanced accuracy over everything that was added, by torchmetrics' functions.

    Binary: of the positive (last) class; otherwise one class against the rest, averaged over the classes that have both
    positives and negatives. Unknown labels (NaN) are left out. Undefined values are NaN.

    Args:
        task: binary, multiclass or multilabel.
    """

    full_state_update = False
    probs: list[Tensor]
    targets: list[Tensor]

    def __init__(self, task: str) -> None:
        super().__init__()
        self.task = task
        self.add_state("probs", default=[], dist_reduce_fx="cat")
        self.add_state("targets", default=[], dist_reduce_fx="cat")

    def update(self, probs: Tensor, targets: Tensor) -> None:
        """Add probabilities (B, C) and targets (B,) or (B, C)."""
        self.probs.append(probs.detach().float().cpu())
        self.targets.append(targets.detach().cpu())

    def compute(self) -> dict[str, Tensor]:
        """Return each metric's value."""
        probs, targets = dim_zero_cat(self.probs), dim_zero_cat(self.targets)
        if not torch.isfinite(probs).all():  # their order, and so every metric, would be that of the table
            return dict.fromkeys(("auroc", "average_precision", "balanced_accuracy"), torch.tensor(torch.nan))
        found: dict[str, list[Tensor]] = {"auroc": [], "average_precision": [], "balanced_accuracy": []}
        for k in [1] if self.task == "binary" else range(probs.shape[1]):
            truth = targets[:, k] if targets.ndim == 2 else (targets == k).float()
            known = ~torch.isnan(truth)
            p, y = probs[known, k], truth[known].long()
            if not 0 < int(y.sum()) < len(y):
                continue
            found["auroc"].append(binary_auroc(p, y))
            found["average_precision"].append(binary_average_precision(p, y))
            said = probs[known].argmax(dim=1) == k if self.task == "multiclass" else p >= 0.5
            sensitivity, specificity = said[y == 1].float().mean(), (~said[y == 0]).float().mean()
            recall = sensitivity if self.task == "multiclass" else (sensitivity + specificity) / 2
            found["balanced_accuracy"].append(recall)
        return {name: torch.stack(v).mean() if v else torch.tensor(torch.nan) for name, v in found.items()}


def build_epoch_metrics(task: str) -> EpochMetrics:
    """Build the metrics of the validation split during training."""
    return EpochMetrics(task)


def one_against_rest(probs: np.ndarray, targets: np.ndarray, *, task: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Bring all tasks to columns of one class against the rest.

    Returns:
        Scores (N, C), truth (N, C) of 1 and 0, and known (N, C) of bool; in binary C is 1, for the positive class.
    """
    if task == "multilabel":
        known = ~np.isnan(targets)
        return probs, np.where(known, targets, 0.0), known
    truth = np.eye(probs.shape[1])[targets]
    if task == "binary":
        probs, truth = probs[:, 1:], truth[:, 1:]
    return probs, truth, np.ones(truth.shape, dtype=bool)


def youden_thresholds(probs: np.ndarray, targets: np.ndarray, *, task: str) -> list[float]:
    """Return, per class, the threshold with the largest sensitivity + specificity − 1 (Youden 1950).

    A probability of at least the threshold is positive. Thresholds lie halfway between neighbouring scores; of equally
    good ones the nearest to 0.5 is taken. A class without positives or negatives gets 0.5.

    Args:
        probs: (N, C), of the validation split.
        targets: (N,) or (N, C).
        task: binary (one threshold, of the positive class), multiclass or multilabel.
    """
    scores, truth, known = one_against_rest(probs, targets, task=task)
    return [_youden(scores[known[:, k], k], truth[known[:, k], k]) for k in range(scores.shape[1])]


def _youden(scores: np.ndarray, truth: np.ndarray) -> float:
    positives, negatives = truth.sum(), (1 - truth).sum()
    if not positives or not negatives:
        return 0.5
    values, inverse = np.unique(scores, return_inverse=True)
    sensitivity = np.cumsum(np.bincount(inverse, truth)[::-1])[::-1] / positives
    one_minus_specificity = np.cumsum(np.bincount(inverse, 1 - truth)[::-1])[::-1] / negatives
    # At the lowest value everything is positive, which says nothing; it stands for itself.
    thresholds = np.concatenate([values[:1], (values[1:] + values[:-1]) / 2])
    youden = sensitivity - one_minus_specificity
    best = np.flatnonzero(youden >= youden.max() - 1e-12)
    return float(thresholds[best[np.abs(thresholds[best] - 0.5).argmin()]])


def decisions(probs: np.ndarray, *, task: str, thresholds: list[float]) -> np.ndarray:
    """Return what is decided: (N, C) of 1 and 0; multiclass: 1 at the argmax; binary: C is 1."""
    if task == "multiclass":
        return np.eye(probs.shape[1])[probs.argmax(axis=1)]
    scores = probs[:, 1:] if task == "binary" else probs
    return (scores >= np.asarray(thresholds)).astype(float)


def weighted_metrics(
    probs: np.ndarray, targets: np.ndarray, weights: np.ndarray, *, task: str, thresholds: list[float]
) -> tuple[Columns, dict[str, np.ndarray]]:
    """Compute every metric for many weightings of the same images.

    Multiclass: `sensitivity` and `specificity` are one class against the rest at its threshold; `f1` and
    `balanced_accuracy` (recall, per class) follow the argmax.

    Args:
        probs: (N, C).
        targets: (N,) or (N, C).
        weights: (R, N), not negative.
        task: binary, multiclass or multilabel.
        thresholds: one per class, or the positive class's.

    Returns:
        Per class: metric → (R, C), C is 1 in binary. Overall, for metrics whose overall value is no average of the
        classes' (accuracy; calibration error of multiclass, of the predicted class): metric → (R,).
    """
    scores, truth, known = one_against_rest(probs, targets, task=task)
    said = decisions(probs, task=task, thresholds=thresholds)
    at_threshold = (scores >= np.asarray(thresholds)).astype(float)
    columns: dict[str, list[np.ndarray]] = {}
    for k in range(scores.shape[1]):
        rows = known[:, k]
        values = _one_class(
            scores[rows, k], truth[rows, k], at_threshold[rows, k], said[rows, k], weights[:, rows], task=task
        )
        for name, value in values.items():
            columns.setdefault(name, []).append(value)
    right = (said == truth) & known
    with np.errstate(invalid="ignore", divide="ignore"):
        if task == "multiclass":
            hit = right.all(axis=1).astype(float)
            overall = {
                "accuracy": weights @ hit / weights.sum(axis=1),
                "ece": _calibration_error(probs.max(axis=1), hit, weights),
            }
        else:
            overall = {"accuracy": weights @ right.sum(axis=1) / (weights @ known.sum(axis=1))}
    return {name: np.stack(values, axis=1) for name, values in columns.items()}, overall


def _one_class(
    scores: np.ndarray,
    truth: np.ndarray,
    at_threshold: np.ndarray,
    said: np.ndarray,
    weights: np.ndarray,
    *,
    task: str,
) -> dict[str, np.ndarray]:
    """Metrics of one class against the rest: each (R,); NaN where a resample lacks what a metric is about."""
    if not len(scores):
        return {name: np.full(len(weights), np.nan) for name in PER_CLASS}
    positives, negatives = weights @ truth, weights @ (1 - truth)
    with np.errstate(invalid="ignore", divide="ignore"):
        sensitivity = weights @ (at_threshold * truth) / positives
        specificity = weights @ ((1 - at_threshold) * (1 - truth)) / negatives
        recall = weights @ (said * truth) / positives
        values = {
            **_ranking(scores, truth, weights),
            "sensitivity": sensitivity,
            "specificity": specificity,
            "balanced_accuracy": recall if task == "multiclass" else (sensitivity + specificity) / 2,
            "f1": 2 * (weights @ (said * truth)) / (weights @ said + positives),
            "brier": weights @ np.square(scores - truth) / (positives + negatives),
            "ece": _calibration_error(scores, truth, weights),
        }
    about_positives, about_negatives = positives > 0, negatives > 0
    about_both, about_all = about_positives & about_negatives, about_positives | about_negatives
    defined = {
        "auroc": about_both, "average_precision": about_both, "sensitivity": about_positives,
        "specificity": about_negatives, "balanced_accuracy": about_positives if task == "multiclass" else about_both,
        "f1": about_positives, "brier": about_all, "ece": about_all,
    }  # fmt: skip
    return {name: np.where(defined[name], value, np.nan) for name, value in values.items()}


def weighted_auroc(scores: np.ndarray, truth: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the AUROC alone for many weightings, (R,); NaN where one lacks positives or negatives.

    Args:
        scores: (N,), any numbers.
        truth: (N,) of 1 and 0.
        weights: (R, N), not negative.
    """
    if not len(scores):
        return np.full(len(weights), np.nan)
    with np.errstate(invalid="ignore", divide="ignore"):
        return _ranking(scores, truth, weights)["auroc"]


def _ranking(scores: np.ndarray, truth: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
    """AUROC by trapezoids and average precision by steps, over distinct scores in falling order, (R,) each."""
    order = np.argsort(-scores, kind="stable")
    last = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))  # the end of each run of equal scores
    ordered = weights[:, order]
    tp = np.cumsum(ordered * truth[order], axis=1)[:, last]
    fp = np.cumsum(ordered * (1 - truth[order]), axis=1)[:, last]
    steps_tp, steps_fp = np.diff(tp, axis=1, prepend=0), np.diff(fp, axis=1, prepend=0)
    area = (steps_fp * (tp - steps_tp / 2)).sum(axis=1) / (tp[:, -1] * fp[:, -1])
    precision = np.divide(tp, tp + fp, out=np.zeros_like(tp), where=tp + fp > 0)
    return {"auroc": area, "average_precision": (steps_tp * precision).sum(axis=1) / tp[:, -1]}


def _calibration_error(scores: np.ndarray, truth: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Σ over bins of (share of the bin) · |mean truth − mean score| (Guo 2017, eq. 5), (R,)."""
    bins = np.clip(np.ceil(scores * BINS).astype(int) - 1, 0, BINS - 1)
    one_hot = np.eye(BINS)[bins]  # (N, BINS)
    gaps = np.abs((weights * (truth - scores)) @ one_hot)
    return gaps.sum(axis=1) / weights.sum(axis=1)
