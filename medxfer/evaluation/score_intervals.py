"""95 % intervals in closed form, for what a bootstrap cannot see: values near 0 or 1, and few patients.

Where no patient was mistaken, no resample holds a mistake, and the bootstrap's interval has no width.
"""

import math
from collections.abc import Callable, Sequence

from scipy import optimize, stats

Ends = tuple[float, float]
"""Low and high end."""

Z = float(stats.norm.ppf(0.975))

ENOUGH = 5
"""Patients that must be expected on either side of a value for the bootstrap to be trusted."""


def is_near_an_edge(value: float, patients: int) -> bool:
    """Return whether so few patients stand between a value and 0 or 1 that the bootstrap misses its spread."""
    return min(value, 1 - value) * patients < ENOUGH


def proportion_interval(value: float, patients: int) -> Ends:
    """Return Wilson's score interval (1927) of a proportion: the p with |value − p| ≤ z·√(p(1 − p)/n).

    >>> [round(end, 3) for end in proportion_interval(1.0, 20)]
    [0.839, 1.0]
    """
    square = Z**2 / patients
    centre = (value + square / 2) / (1 + square)
    half = Z / (1 + square) * math.sqrt(value * (1 - value) / patients + square / (4 * patients))
    return max(0.0, centre - half), min(1.0, centre + half)


def auroc_interval(value: float, positives: int, negatives: int) -> Ends:
    """Return Newcombe's score interval of an AUROC (2006, Statistics in Medicine 25:559, method 5).

    The θ with |value − θ| ≤ z·√V(θ), where V is the variance of Hanley and McNeil (1982) with N = (m + n)/2:
    V(θ) = θ(1 − θ)·(1 + (N − 1)·((1 − θ)/(2 − θ) + θ/(1 + θ)))/(m·n).
    """
    pairs, spread = positives * negatives, (positives + negatives) / 2 - 1

    def beyond(theta: float) -> float:
        variance = theta * (1 - theta) * (1 + spread * ((1 - theta) / (2 - theta) + theta / (1 + theta))) / pairs
        return abs(value - theta) - Z * math.sqrt(variance)

    tiny = 1e-9
    low = _root(beyond, 0.0, min(value, 1 - tiny)) if value > tiny else 0.0
    high = _root(beyond, max(value, tiny), 1.0) if value < 1 - tiny else 1.0
    return low, high


def _root(function: Callable[[float], float], low: float, high: float) -> float:
    return float(optimize.root_scalar(function, bracket=(low, high)).root)


def f1_interval(value: float, patients: int) -> Ends:
    """Return the interval of F1 by that of the proportion J = TP/(TP + FP + FN), of which F1 is 2J/(1 + J)."""
    low, high = proportion_interval(value / (2 - value), patients)
    return 2 * low / (1 + low), 2 * high / (1 + high)


def mean_interval(values: Sequence[float], ends: Sequence[Ends]) -> Ends:
    """Return the interval of a mean from those of its parts, by adding squares (Newcombe 1998; MOVER)."""
    mean, number = sum(values) / len(values), len(values)
    below = math.sqrt(sum((value - low) ** 2 for value, (low, _) in zip(values, ends, strict=True))) / number
    above = math.sqrt(sum((high - value) ** 2 for value, (_, high) in zip(values, ends, strict=True))) / number
    return mean - below, mean + above
