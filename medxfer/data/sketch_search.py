"""Which of many sketches may show one picture: a probabilistic model, and a search in chunks of bounded memory."""

from collections.abc import Callable, Iterator
from functools import lru_cache

import numpy as np
from scipy.linalg import eigh
from tqdm import tqdm

from medxfer.data.patches import PATCH_PX, cropped, sketch_of, turned

MAX_CROP = 0.05
"""Crop of a side that is looked for, as its share."""

CROPS = MAX_CROP * np.array([[0, 0, 0, 0], [1, 1, 1, 1], [1, 0, 1, 0], [1, 0, 0, 1], [0, 1, 1, 0], [0, 1, 0, 1]])
"""Shares cut from top, bottom, left and right of a picture before it is compared with the others, which are whole."""

DIMENSIONS = 96
"""Of the space that is searched."""

NEIGHBOURS, SURE_NEIGHBOURS, EARLIEST, MIN_LOG_ODDS = 10, 2, 4, 10.0
"""Most proposals of a picture; those made whatever their log-likelihood ratio, which must else be above the last; and
the first rows that are added where there are more."""

SAMPLE, COPIES, TEXTURES = 600, 4, 200
"""Pictures the search is fitted to, changed copies of each, and the least number, made up of random textures."""

QUERY_CHUNK, TARGET_CHUNK = 64, 4096
"""Rows compared at once, which bounds the memory."""

Proposal = tuple[int, int, int, float]
"""First and second row, how the second is to be turned, and the log-likelihood ratio."""


class SketchSearch:
    """Finds sketches that may show one picture: a two-covariance model of Gaussian features.

    In the basis that diagonalises both the covariance between pictures and that of all sketches, two sketches of one
    picture have the correlation ρ in each dimension, and those of two pictures none. The log-likelihood ratio of the
    two is an inner product of longer vectors, so that one matrix product scores many pairs (Ioffe, Probabilistic linear
    discriminant analysis, ECCV 2006).

    Args:
        mean: (F,) of the sketches.
        basis: (F, D).
        rho: (D,), between 0 and 1.
    """

    def __init__(self, mean: np.ndarray, basis: np.ndarray, rho: np.ndarray) -> None:
        self.mean, self.basis, self.rho = (part.astype(np.float32) for part in (mean, basis, rho))

    @classmethod
    def fit(cls, patch: Callable[[int], np.ndarray], rows: list[int]) -> "SketchSearch":
        """Learn from changed copies of a sample of the pictures; the same pictures give the same search."""
        rng = np.random.default_rng(0)
        picked = np.unique(np.linspace(0, len(rows) - 1, min(SAMPLE, len(rows))).astype(int))
        copies = np.stack([_changed_sketches(patch(rows[i]), rng) for i in picked])
        copies = np.concatenate([copies, _texture_sketches()[len(copies) :]])
        mean = copies.mean(axis=(0, 1))
        size = mean.size
        deviations = (copies - mean).reshape(-1, size)
        total = deviations.T @ deviations / len(deviations)
        deviations = (copies - copies.mean(axis=1, keepdims=True)).reshape(-1, size)
        within = deviations.T @ deviations / (len(copies) * (COPIES - 1))
        ridge = 0.01 * np.trace(total) / size * np.eye(size)
        rho, basis = eigh(total - within, total + ridge, subset_by_index=[size - DIMENSIONS, size - 1])
        return cls(mean, basis, np.clip(rho, 0.01, 0.98))

    def propose(
        self, sketches: dict[int, np.ndarray], queries: Callable[[list[int]], np.ndarray], bar: tqdm
    ) -> list[Proposal]:
        """Return pairs of rows that may show one picture, each once, the likeliest first.

        Args:
            sketches: (SKETCH_PX, SKETCH_PX) by row.
            queries: Q rows → float32 (Q, W, F), the sketches that are compared, V of each of the eight turns.
            bar: counts rows.
        """
        rows = list(sketches)
        targets = np.vstack([self._vectors(sketches[row].reshape(1, -1), side=0) for row in rows])
        best: dict[tuple[int, int], tuple[float, int]] = {}
        for start in range(0, len(rows), QUERY_CHUNK):
            chunk = rows[start : start + QUERY_CHUNK]
            vectors = np.ascontiguousarray(self._vectors(queries(chunk), side=1).swapaxes(0, 1))
            for query, target, turn, log_odds in _nearest(vectors, targets, start):
                # The query was turned to match the target; of a pair, the second is to be turned to match the first.
                turn = (4 - turn) % 4 if query < target and turn < 4 else turn
                key = (rows[min(query, target)], rows[max(query, target)])
                best[key] = max(best.get(key, (log_odds, turn)), (log_odds, turn))
            bar.update(len(chunk))
        proposals = [(first, second, turn, log_odds) for (first, second), (log_odds, turn) in best.items()]
        return sorted(proposals, key=lambda p: (-p[3], p[0], p[1]))

    def _vectors(self, flat: np.ndarray, *, side: int) -> np.ndarray:
        """(..., F) → float32 (..., D + 2); inner products of those of sides 0 and 1 are log-likelihood ratios."""
        z = (flat.astype(np.float32) - self.mean) @ self.basis
        # On one sphere heavy-tailed features are nearly Gaussian (Garcia-Romero, Espy-Wilson, Interspeech 2011).
        z *= np.sqrt(z.shape[-1]) / np.maximum(np.linalg.norm(z, axis=-1, keepdims=True), 1e-6)
        weight = self.rho / (1 - self.rho**2)
        own = -0.5 * (self.rho * weight * z**2 + 0.5 * np.log(1 - self.rho**2)).sum(axis=-1, keepdims=True)
        constants = [own, np.ones_like(own)]
        return np.concatenate([np.sqrt(weight) * z, constants[side], constants[1 - side]], axis=-1)


@lru_cache(maxsize=1)
def _texture_sketches() -> np.ndarray:
    """Changed sketches of noise with the spectrum 1/f of natural pictures: they teach what few pictures cannot."""
    rng = np.random.default_rng(0)
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(PATCH_PX), np.fft.fftfreq(PATCH_PX)))
    sketches = []
    for _ in range(TEXTURES):
        noise = np.fft.fft2(rng.normal(size=(PATCH_PX, PATCH_PX))) / np.maximum(frequency, 1 / PATCH_PX)
        texture = np.fft.ifft2(noise).real
        grey = np.clip(128 + 40 * texture / texture.std(), 0, 255).astype(np.float32)
        sketches.append(_changed_sketches(grey, rng))
    return np.stack(sketches)


def _changed_sketches(grey: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Sketches of a patch in one orientation, cropped and re-exposed in several ways: float64 (COPIES, F)."""
    turn = int(rng.integers(8))
    sketches = []
    for _ in range(COPIES):
        sides = rng.uniform(0, MAX_CROP, 4) if rng.random() < 0.5 else MAX_CROP * rng.integers(0, 2, 4)
        changed = 255 * (cropped(grey, sides) / 255) ** np.exp(rng.uniform(-0.5, 0.5))
        changed = (changed - 128) * rng.uniform(0.7, 1.3) + 128 + rng.uniform(-30, 30)
        changed = np.clip(changed + rng.normal(0, 1, grey.shape), 0, 255).astype(np.float32)
        sketches.append(turned(sketch_of(changed), turn).ravel())
    return np.stack(sketches).astype(np.float64)


def _nearest(queries: np.ndarray, targets: np.ndarray, start: int) -> Iterator[tuple[int, int, int, float]]:
    """Yield (query, target, turn of the query, log-odds) of the few best targets of each query.

    Args:
        queries: float32 (W, Q, D): of each query W sketches, as many of each of the eight turns.
        targets: float32 (N, D).
        start: position of the first query among the targets.
    """
    size = queries.shape[1]
    line, positions = np.arange(size)[:, np.newaxis], np.arange(start, start + size)
    nearest: list[tuple[np.ndarray, np.ndarray]] = []
    linked: list[list[int]] = [[] for _ in range(size)]
    for begin in range(0, len(targets), TARGET_CHUNK):
        chunk = targets[begin : begin + TARGET_CHUNK].T
        best = queries[0] @ chunk
        for query in queries[1:]:
            np.maximum(best, query @ chunk, out=best)
        own = (positions >= begin) & (positions < begin + best.shape[1])
        best[own, positions[own] - begin] = -np.inf
        columns = np.argpartition(-best, min(NEIGHBOURS, best.shape[1]) - 1, axis=1)[:, :NEIGHBOURS]
        nearest.append((best[line, columns], columns + begin))
        # Of many copies each has other nearest ones: the first rows link them all.
        likely = best > MIN_LOG_ODDS
        for q in np.flatnonzero(likely.sum(axis=1) > NEIGHBOURS):
            linked[q] += (begin + np.flatnonzero(likely[q])[: EARLIEST - len(linked[q])]).tolist()
    log_odds, target = (np.hstack(part) for part in zip(*nearest, strict=True))
    order = np.argsort(-log_odds, axis=1, kind="stable")[:, :NEIGHBOURS]
    for q, row in enumerate(order):
        likely = log_odds[q, row] > MIN_LOG_ODDS
        likely[:SURE_NEIGHBOURS] = np.isfinite(log_odds[q, row[:SURE_NEIGHBOURS]])
        for t in dict.fromkeys(target[q, row[likely]].tolist() + linked[q]):
            scores = queries[:, q] @ targets[t]
            yield start + q, t, int(scores.argmax()) // (len(queries) // 8), float(scores.max())
