"""95 % intervals by the bootstrap over patients (cluster bootstrap: Efron 1979; Field and Welsh 2007)."""

from collections.abc import Iterator

import numpy as np

from medxfer.evaluation.metrics import weighted_metrics

MAX_NUMBERS = 4_000_000
"""Weights that are held in memory at a time."""

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


def metrics_with_intervals(
    probs: np.ndarray,
    targets: np.ndarray,
    groups: np.ndarray | None,
    *,
    task: str,
    thresholds: list[float],
    resamples: int,
    seed: int,
) -> tuple[dict[str, tuple[float, float, float]], dict[str, list[tuple[float, float, float]]]]:
    """Return value, low and high of every metric: averaged, and per class; NaN where undefined.

    An average is over the classes that the data define; a resample that lacks one of them is left out.

    Args:
        probs: (N, C).
        targets: (N,) or (N, C).
        groups: (N,) patients, or None.
        task: binary, multiclass or multilabel.
        thresholds: fixed before.
        resamples: number of resamples.
        seed: of the draws.
    """
    settings = {"task": task, "thresholds": thresholds}
    once, once_overall = weighted_metrics(probs, targets, np.ones((1, len(probs))), **settings)
    parts = [
        weighted_metrics(probs, targets, weights, **settings)
        for weights in bootstrap_counts(groups, len(probs), resamples=resamples, seed=seed)
    ]
    averaged, per_class = {}, {}
    for name, values in once.items():
        again = np.concatenate([columns[name] for columns, _ in parts])
        defined = ~np.isnan(values[0])
        per_class[name] = [_interval(values[0, k], again[:, k]) for k in range(values.shape[1])]
        if defined.any():
            averaged[name] = _interval(values[0, defined].mean(), again[:, defined].mean(axis=1))
        else:
            averaged[name] = (np.nan, np.nan, np.nan)
    for name, values in once_overall.items():
        averaged[name] = _interval(values[0], np.concatenate([overall[name] for _, overall in parts]))
    return averaged, per_class


def _interval(value: float, resampled: np.ndarray) -> tuple[float, float, float]:
    resampled = resampled[~np.isnan(resampled)]
    if np.isnan(value) or len(resampled) < LEAST_RESAMPLES:
        return float(value), float("nan"), float("nan")
    low, high = np.percentile(resampled, [2.5, 97.5])
    return float(value), float(low), float(high)
