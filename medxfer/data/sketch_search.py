"""Which of many sketches may show one picture: a probabilistic model, and a search in chunks of bounded memory."""

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache

import numpy as np
from scipy.linalg import eigh
from tqdm import tqdm

from medxfer.data.cells import Cells
from medxfer.data.patches import PATCH_PX, SKETCH_PX, cropped, has_texture, sketch_of, turned

MAX_CROP = 0.05
"""Crop of a side that is looked for, as its share."""

CROPS = MAX_CROP * np.array([[0, 0, 0, 0], [1, 1, 1, 1], [1, 0, 1, 0], [1, 0, 0, 1], [0, 1, 1, 0], [0, 1, 0, 1]])
"""Shares cut from top, bottom, left and right of a picture before it is compared with the others, which are whole."""

DIMENSIONS = 96
"""Of the space that is searched."""

NEIGHBOURS, SURE_NEIGHBOURS, EARLIEST = 10, 2, 4
"""Most proposals of a picture; those made even if they are not likely; and the first rows that are added where more
pictures are likely than are proposed."""

LIKELY, UNLIKELY = 10.0, -100.0
"""Log-likelihood ratios: above the first a proposal is made, below the second never."""

SAMPLE, COPIES, TEXTURES = 600, 4, 200
"""Pictures the search is fitted to, changed copies of each, and the least number, made up of random textures."""

PROBES = 5
"""Cells that each of a picture's sketches is compared with the members of. Of 2,000 copies among 100,000 pictures none
was missed that comparing it with all would have found, and with 3 one."""

QUERY_CHUNK, TARGET_CHUNK = 256, 1024
"""Rows compared at once, which bounds the memory."""

PROPOSAL = np.dtype([("first", np.int64), ("second", np.int64), ("turn", np.int8), ("log_odds", np.float32)])
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
    def fit(cls, patch: Callable[[int], np.ndarray], rows: np.ndarray) -> "SketchSearch":
        """Learn from changed copies of a sample of the pictures; the same pictures give the same search.

        Args:
            patch: row → float32 (PATCH_PX, PATCH_PX).
            rows: of the pictures; blank ones teach nothing.
        """
        rng = np.random.default_rng(0)
        picked = rows[np.unique(np.linspace(0, len(rows) - 1, min(SAMPLE, len(rows))).astype(int))]
        greys = [grey for grey in map(patch, picked.tolist()) if has_texture(grey)]
        copies = np.array([_changed_sketches(grey, rng) for grey in greys]).reshape(-1, COPIES, SKETCH_PX**2)
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
        self, rows: np.ndarray, targets: np.ndarray, queries: Callable[[Sequence[int]], np.ndarray], bar: tqdm
    ) -> np.ndarray:
        """Return pairs of rows that may show one picture, each once, the likeliest first, `PROPOSAL` (P,).

        Args:
            rows: (N,), rising.
            targets: float32 (N, D + 2), their sketches as `vectors` of side 0; may lie on disk.
            queries: Q rows → float32 (Q, W, F), the sketches that are compared, as many of each of the eight turns.
            bar: counts rows.
        """
        cells = Cells.fit(targets[:, :-2])
        members = cells.members(targets[:, :-2])
        found = [np.zeros(0, dtype=PROPOSAL)]
        for start in range(0, len(rows), QUERY_CHUNK):
            chunk = rows[start : start + QUERY_CHUNK]
            vectors = self.vectors(queries(chunk.tolist()), side=1)
            nearest = _nearest(len(chunk), _scored(vectors, targets, cells, members, start))
            found.append(_paired(vectors, targets, nearest, start))
            bar.update(len(chunk))
        pairs = np.concatenate(found)
        # A pair may be found from either of its ends: the better one counts.
        pairs = pairs[np.lexsort((-pairs["turn"], -pairs["log_odds"], pairs["second"], pairs["first"]))]
        repeated = (np.diff(pairs["first"], prepend=-1) == 0) & (np.diff(pairs["second"], prepend=-1) == 0)
        pairs = pairs[~repeated]
        pairs["first"], pairs["second"] = rows[pairs["first"]], rows[pairs["second"]]
        return pairs[np.argsort(-pairs["log_odds"], kind="stable")]

    def vectors(self, flat: np.ndarray, *, side: int) -> np.ndarray:
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


def _scored(
    queries: np.ndarray, targets: np.ndarray, cells: Cells, members: Sequence[np.ndarray], start: int
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Compare queries with the targets in the cells around them.

    Args:
        queries: float32 (Q, W, D + 2): of each query W sketches.
        targets: float32 (N, D + 2).
        cells: of the targets.
        members: positions of each cell's targets, rising.
        start: position of the first query among the targets.

    Yields:
        Numbers of queries (q,), positions of targets (t,) and their log-odds (q, t), those of the best of the query's
        sketches that asked for the cell; −inf for a query and itself. Each query and target at most once.
    """
    size, variants, _ = queries.shape
    flat = queries.reshape(size * variants, -1)
    probed = cells.nearest(flat[:, :-2], PROBES)
    by_cell = np.argsort(probed, axis=None, kind="stable")
    ends = np.cumsum(np.bincount(probed.ravel(), minlength=len(cells)))[:-1]
    for cell, asked in enumerate(np.split(by_cell // probed.shape[1], ends)):
        if not len(asked):
            continue
        query, first = np.unique(asked // variants, return_index=True)
        for begin in range(0, len(members[cell]), TARGET_CHUNK):
            here = members[cell][begin : begin + TARGET_CHUNK]
            log_odds = np.maximum.reduceat(flat[asked] @ np.asarray(targets[here]).T, first, axis=0)
            log_odds[query[:, np.newaxis] + start == here] = -np.inf
            yield query, here, log_odds


def _nearest(
    size: int, scored: Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]
) -> Iterator[tuple[int, np.ndarray]]:
    """Yield each query's number and the positions of the targets that may show the same picture.

    Args:
        size: number of queries.
        scored: what `_scored` yields.
    """
    best, first = [], []
    likely_ones = np.zeros(size, dtype=np.int64)
    for query, here, log_odds in scored:
        line = np.arange(len(query))[:, np.newaxis]
        column = np.argpartition(-log_odds, min(NEIGHBOURS, len(here)) - 1, axis=1)[:, :NEIGHBOURS]
        best.append((np.repeat(query, column.shape[1]), here[column].ravel(), -log_odds[line, column].ravel()))
        # Of many copies each has other nearest ones: the first rows link them all.
        likely = log_odds > LIKELY
        likely_ones[query] += likely.sum(axis=1)
        line, column = np.nonzero(likely & (np.cumsum(likely, axis=1) <= EARLIEST))
        first.append((query[line], here[column], here[column]))
    for q, (near, cost), (early, _) in zip(range(size), _by_query(best, size), _by_query(first, size), strict=True):
        wanted = -cost[:NEIGHBOURS] > LIKELY
        wanted[:SURE_NEIGHBOURS] = -cost[:SURE_NEIGHBOURS] > UNLIKELY
        linked = early[: EARLIEST if likely_ones[q] > NEIGHBOURS else 0]
        yield q, np.unique(np.concatenate([near[:NEIGHBOURS][wanted], linked]))


def _by_query(
    parts: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]], size: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield each query's targets and their costs, by rising cost, from parts of queries, targets and costs."""
    query, target, cost = (np.concatenate(part) for part in zip(*parts, strict=True))
    order = np.lexsort((target, cost, query))
    ends = np.cumsum(np.bincount(query, minlength=size))[:-1]
    yield from zip(np.split(target[order], ends), np.split(cost[order], ends), strict=True)


def _paired(
    queries: np.ndarray, targets: np.ndarray, nearest: Iterator[tuple[int, np.ndarray]], start: int
) -> np.ndarray:
    """Return queries and targets as proposals of positions, each with its likeliest turn."""
    found = [np.zeros(0, dtype=PROPOSAL)]
    for q, positions in nearest:
        log_odds = queries[q] @ np.asarray(targets[positions]).T
        turn = log_odds.argmax(axis=0) // (len(queries[q]) // 8)
        # The query was turned to match the target; of a pair, the second is to be turned to match the first.
        turn = np.where((start + q < positions) & (turn < 4), (4 - turn) % 4, turn)
        pairs = np.zeros(len(positions), dtype=PROPOSAL)
        pairs["first"], pairs["second"] = np.minimum(start + q, positions), np.maximum(start + q, positions)
        pairs["turn"], pairs["log_odds"] = turn, log_odds.max(axis=0)
        found.append(pairs)
    return np.concatenate(found)
