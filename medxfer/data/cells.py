"""Vectors sorted into cells of near ones, so that a search need not look at all of them (an inverted file).

Jégou, Douze and Schmid, Product quantization for nearest neighbor search, IEEE TPAMI 33:117, 2011.
"""

from collections.abc import Iterator

import numpy as np

SAMPLE_PER_CELL = 20
"""Vectors that a cell's centre is learnt from."""

ROUNDS = 3
"""Of k-means (Lloyd 1982)."""

LEAST_PER_CELL = 100
"""Vectors of a cell on average; more where there are so many that the cells themselves would take the time."""

AT_ONCE = 4_000_000
"""Numbers that are held in memory at a time."""


class Cells:
    """Cells of some vectors, each around its centre; a vector belongs to the nearest one.

    Args:
        centres: float32 (K, D).
    """

    def __init__(self, centres: np.ndarray) -> None:
        self.centres = centres
        self._own = 0.5 * np.square(centres).sum(axis=1)

    def __len__(self) -> int:
        return len(self.centres)

    @classmethod
    def fit(cls, vectors: np.ndarray) -> "Cells":
        """Learn the centres from an even sample of vectors (N, D); the same vectors give the same cells."""
        size = len(vectors)
        number = max(1, round(size / max(LEAST_PER_CELL, np.sqrt(size / 10))))
        sample = np.asarray(vectors[_evenly(size, SAMPLE_PER_CELL * number)], dtype=np.float32)
        cells = cls(sample[_evenly(len(sample), number)])
        for _ in range(ROUNDS):
            members = cells.nearest(sample, 1)[:, 0]
            counts = np.bincount(members, minlength=number)
            sums = np.zeros_like(cells.centres)
            np.add.at(sums, members, sample)
            means = sums / np.maximum(counts, 1)[:, np.newaxis]
            cells = cls(np.where(counts[:, np.newaxis] > 0, means, cells.centres).astype(np.float32))
        return cells

    def nearest(self, vectors: np.ndarray, count: int) -> np.ndarray:
        """Return the nearest cells of each vector, int64 (N, at most count), in no order."""
        count = min(count, len(self))
        found = np.empty((len(vectors), count), dtype=np.int64)
        step = max(1, AT_ONCE // len(self))
        for start in range(0, len(vectors), step):
            distances = self._own - vectors[start : start + step] @ self.centres.T
            if count == 1:
                found[start : start + step, 0] = distances.argmin(axis=1)
            else:
                found[start : start + step] = np.argpartition(distances, count - 1, axis=1)[:, :count]
        return found

    def members(self, vectors: np.ndarray) -> list[np.ndarray]:
        """Return the rows of each cell's vectors in rising order."""
        step = max(1, AT_ONCE // len(self))
        cell = np.concatenate([self.nearest(part, 1)[:, 0] for part in _parts(vectors, step)])
        order = np.argsort(cell, kind="stable")
        return np.split(order, np.cumsum(np.bincount(cell, minlength=len(self)))[:-1])


def _evenly(size: int, number: int) -> np.ndarray:
    return np.linspace(0, size - 1, min(number, size)).astype(np.int64)


def _parts(vectors: np.ndarray, step: int) -> Iterator[np.ndarray]:
    for start in range(0, len(vectors), step):
        yield np.asarray(vectors[start : start + step])
