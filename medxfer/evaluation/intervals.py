"""95 % intervals by the bootstrap over patients (cluster bootstrap: Efron 1979; Field and Welsh 2007).

Plain percentiles are too narrow for skewed metrics and few patients. They are corrected for bias and acceleration (BCa:
Efron 1987, JASA 82:171; the jackknife leaves out one patient at a time, or one of 1,000 parts of them) and expanded to
Student's t (Hesterberg 2015, American Statistician 69:371). Where too few patients stand between a value and 0 or 1,
closed forms over patients take their place (see `score_intervals`).
"""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from scipy import stats

from medxfer.evaluation.metrics import Columns, one_against_rest, weighted_auroc, weighted_metrics
from medxfer.evaluation.score_intervals import (
    Ends,
    auroc_interval,
    f1_interval,
    is_near_an_edge,
    mean_interval,
    proportion_interval,
)

MAX_NUMBERS = 2_000_000
"""Weights that are held in memory at a time."""

MAX_PARTS = 1000
"""Parts of the groups that the jackknife leaves out one at a time: of more groups, several go at once."""

LEAST_RESAMPLES = 50
"""With fewer resamples in which a metric is defined, no interval is given."""


def bootstrap_counts(groups: np.ndarray | None, size: int, *, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """Draw groups with replacement and yield how often each image was drawn, in chunks of bounded memory.

    Args:
        groups: (N,), images with equal values are drawn together; None: each image by itself.
        size: N.
        resamples: number of resamples.
        seed: of the draws.

    Yields:
        (r, N) float64 arrays; together (resamples, N).
    """
    rng = np.random.default_rng(seed)
    members = np.arange(size) if groups is None else np.unique(groups, return_inverse=True)[1]
    number = int(members.max()) + 1
    chunk = max(1, MAX_NUMBERS // max(1, size))
    for start in range(0, resamples, chunk):
        rows = min(chunk, resamples - start)
        drawn = rng.integers(number, size=(rows, number))
        drawn += np.arange(rows)[:, np.newaxis] * number
        counts = np.bincount(drawn.ravel(), minlength=rows * number).reshape(rows, number)
        yield counts[:, members].astype(np.float64)


def left_out_counts(groups: np.ndarray | None, size: int) -> Iterator[np.ndarray]:
    """Leave out one group after the other, in chunks of bounded memory; of more than 1,000 groups one part of them.

    The time then grows with the images and not with their square. The acceleration takes the third moment of the
    changes over the second to the power of 3/2, and both moments of a sum of independent changes are sums, so that it
    is the same for parts, up to chance: a standard deviation of √15/6 over the number of parts.

    Yields:
        (r, N) float64 arrays of 1 and 0; together (number of parts, N).
    """
    members = np.arange(size) if groups is None else np.unique(groups, return_inverse=True)[1]
    number = int(members.max()) + 1
    parts = min(number, MAX_PARTS)
    if parts < number:  # drawn, as neighbours may be alike
        members = np.random.default_rng(0).permutation(number)[members] % parts
    chunk = max(1, MAX_NUMBERS // max(1, size))
    for start in range(0, parts, chunk):
        left_out = np.arange(start, min(start + chunk, parts))
        yield (members != left_out[:, np.newaxis]).astype(np.float64)


Interval = tuple[float, float, float]
"""Value, low and high end."""


def auroc_with_interval(
    scores: np.ndarray, targets: np.ndarray, groups: np.ndarray | None, *, task: str, seed: int, resamples: int = 500
) -> Interval:
    """Return the AUROC alone, averaged over the classes, with its interval.

    The interval is of percentiles, so that its time grows with the images and not with their square: for many models of
    one collection. Near 0 and 1 closed forms take its place, as in `metrics_with_intervals`.

    Args:
        scores: (N, C), any numbers.
        targets: (N,) or (N, C).
        groups: (N,) patients, or None.
        task: binary, multiclass or multilabel.
        seed: of the draws.
        resamples: number of resamples.
    """
    columns, truth, known = one_against_rest(scores, targets, task=task)
    size = len(columns)

    def compute(weights: np.ndarray) -> np.ndarray:
        each = [
            weighted_auroc(columns[known[:, k], k], truth[known[:, k], k], weights[:, known[:, k]])
            for k in range(columns.shape[1])
        ]
        return np.stack(each, axis=1)

    once = compute(np.ones((1, size)))[0]
    defined = ~np.isnan(once)
    if not defined.any():
        return np.nan, np.nan, np.nan
    again = np.concatenate([compute(part) for part in bootstrap_counts(groups, size, resamples=resamples, seed=seed)])
    number = size if groups is None else len(np.unique(groups))
    nothing = np.zeros(0)
    closed = _closed_forms({"auroc": once}, targets, groups, scores, task=task)["auroc"]
    each = [
        _replaced(bca_interval(once[k], again[:, k], nothing, number=number, correct=False), closed[k])
        for k in np.flatnonzero(defined)
    ]
    mean = bca_interval(once[defined].mean(), again[:, defined].mean(axis=1), nothing, number=number, correct=False)
    return _replaced(mean, _of_the_mean(each, closed))


def metrics_with_intervals(
    probs: np.ndarray,
    targets: np.ndarray,
    groups: np.ndarray | None,
    *,
    task: str,
    thresholds: list[float],
    resamples: int,
    seed: int,
) -> tuple[dict[str, Interval], dict[str, list[Interval]]]:
    """Return value, low and high of every metric: averaged, and per class; NaN where undefined.

    An average is over the classes that the data define; a resample that lacks one of them is left out. The calibration
    error's resamples lie above it by nature, so that its interval is not corrected for that.

    Args:
        probs: (N, C).
        targets: (N,) or (N, C).
        groups: (N,) patients, or None.
        task: binary, multiclass or multilabel.
        thresholds: fixed before.
        resamples: number of resamples.
        seed: of the draws.
    """
    size = len(probs)
    number = size if groups is None else len(np.unique(groups))

    def compute(chunks: Iterable[np.ndarray]) -> tuple[Columns, Columns]:
        parts = [weighted_metrics(probs, targets, chunk, task=task, thresholds=thresholds) for chunk in chunks]
        return _joined([columns for columns, _ in parts]), _joined([overall for _, overall in parts])

    once, once_overall = compute([np.ones((1, size))])
    again, again_overall = compute(bootstrap_counts(groups, size, resamples=resamples, seed=seed))
    without, without_overall = compute(left_out_counts(groups, size)) if number > 1 else (once, once_overall)

    def interval(name: str, value: float, resampled: np.ndarray, jackknife: np.ndarray) -> Interval:
        return bca_interval(value, resampled, jackknife, number=number, correct=name != "ece")

    closed = _closed_forms({name: values[0] for name, values in once.items()}, targets, groups, probs, task=task)
    averaged, per_class = {}, {}
    for name, values in once.items():
        defined = ~np.isnan(values[0])
        per_class[name] = [
            _replaced(interval(name, values[0, k], again[name][:, k], without[name][:, k]), closed[name][k])
            for k in range(values.shape[1])
        ]
        if defined.any():
            averages = (part[name][:, defined].mean(axis=1) for part in (again, without))
            averaged[name] = _replaced(
                interval(name, values[0, defined].mean(), *averages),
                _of_the_mean([one for one in per_class[name] if not np.isnan(one[0])], closed[name]),
            )
        else:
            averaged[name] = (np.nan, np.nan, np.nan)
    for name, values in once_overall.items():
        bootstrap = interval(name, values[0], again_overall[name], without_overall[name])
        near = name == "accuracy" and is_near_an_edge(values[0], number)
        averaged[name] = _replaced(bootstrap, proportion_interval(values[0], number) if near else None)
    return averaged, per_class


def _closed_forms(
    values: dict[str, np.ndarray], targets: np.ndarray, groups: np.ndarray | None, probs: np.ndarray, *, task: str
) -> dict[str, list[Ends | None]]:
    """Return each metric's interval per class in closed form; None where the bootstrap's is enough."""
    _, truth, known = one_against_rest(probs, targets, task=task)
    members = np.arange(len(probs)) if groups is None else np.asarray(groups)
    found: dict[str, list[Ends | None]] = {name: [] for name in values}
    for k in range(truth.shape[1]):
        positives, negatives = (len(np.unique(members[known[:, k] & (truth[:, k] == side)])) for side in (1, 0))
        for name, column in values.items():
            found[name].append(_closed_form(name, column[k], positives, negatives))
        if (
            task != "multiclass"
            and "balanced_accuracy" in values
            and is_near_an_edge(values["balanced_accuracy"][k], min(positives, negatives))
        ):
            both = (values["sensitivity"][k], positives), (values["specificity"][k], negatives)
            halves = [proportion_interval(*one) for one in both]
            found["balanced_accuracy"][k] = mean_interval([value for value, _ in both], halves)
    return found


def _closed_form(name: str, value: float, positives: int, negatives: int) -> Ends | None:
    if name in ("brier", "ece") or np.isnan(value):
        return None
    patients = {"specificity": negatives, "auroc": min(positives, negatives)}.get(name, positives)
    if not is_near_an_edge(value, patients):
        return None
    if name == "auroc":
        return auroc_interval(value, positives, negatives)
    return (f1_interval if name == "f1" else proportion_interval)(value, patients)


def _of_the_mean(defined: Sequence[Interval], closed: Sequence[Ends | None]) -> Ends | None:
    """Return the interval of the average over classes from theirs, if one of them is in closed form."""
    if not any(closed) or any(np.isnan(low) for _, low, _ in defined):
        return None
    return mean_interval([value for value, _, _ in defined], [(low, high) for _, low, high in defined])


def _replaced(interval: Interval, ends: Ends | None) -> Interval:
    return (interval[0], *ends) if ends is not None and not np.isnan(interval[1]) else interval


def _joined(parts: Sequence[Columns]) -> Columns:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def bca_interval(
    value: float, resampled: np.ndarray, jackknife: np.ndarray, *, number: int, correct: bool = True
) -> Interval:
    """Return a value with its expanded BCa interval of 95 %; NaN ends where too few resamples define it.

    Args:
        value: on the data.
        resampled: (R,), on resamples.
        jackknife: (number,), without one group each.
        number: of groups.
        correct: False: expanded percentiles, without correction for bias and acceleration.
    """
    resampled = resampled[~np.isnan(resampled)]
    if np.isnan(value) or len(resampled) < LEAST_RESAMPLES or number < 2:
        return float(value), float("nan"), float("nan")
    ends = np.array([-1, 1]) * np.sqrt(number / (number - 1)) * stats.t.ppf(0.975, number - 1)
    if correct:
        below = np.mean(resampled < value) + np.mean(resampled == value) / 2
        margin = 0.5 / len(resampled)
        bias = stats.norm.ppf(np.clip(below, margin, 1 - margin))
        shifted = bias + ends
        ends = bias + shifted / np.maximum(1 - _acceleration(jackknife) * shifted, 0.1)
    low, high = np.quantile(resampled, stats.norm.cdf(ends))
    return float(value), float(low), float(high)


def _acceleration(jackknife: np.ndarray) -> float:
    gaps = jackknife[~np.isnan(jackknife)]
    gaps = gaps.mean() - gaps if len(gaps) else gaps
    spread = np.square(gaps).sum() ** 1.5
    return float((gaps**3).sum() / (6 * spread)) if spread > 0 else 0.0
