"""Near-duplicate pictures: the same one resized, recompressed, cropped a little, re-exposed, flipped or turned.

Two steps. A sketch of every picture (its local contrast on a coarse grid, projected on what survives such changes best)
proposes a few others, in all eight orientations. Each proposal is then registered, and the fine structure of the two
pictures is correlated: chests of two patients are alike in shape, but not in fine structure.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
from scipy.linalg import eigh
from tqdm import tqdm

from medxfer.data.dataset import Pictures

MIN_SIMILARITY = 0.78
"""Least correlation of near-duplicates; `benchmarks/near_duplicates.py` prints the curve behind it."""

MIN_LOCAL_SIMILARITY = 0.1
"""Least correlation in the worst tenth of the picture: a frame, a ruler or a marker alone makes no duplicate."""

MIN_MEDIUM_SIMILARITY = 0.65
"""Least correlation of coarser structure, after a coarse registration, that is worth a fine one."""

MIN_TEXTURE = 0.05
"""Share of a picture that must have structure; with less it is blank, and never compared."""

MAX_CROP, MAX_STRETCH, MAX_SHIFT = 0.05, 0.15, 0.09
"""Crop of a side that is looked for; stretch and shift of the centre, of the side, that it and another may explain."""

TURNS = (
    "none",
    "rotated by 90° counter-clockwise",
    "rotated by 180°",
    "rotated by 90° clockwise",
    "flipped left-right",
    "flipped along the main diagonal",
    "flipped up-down",
    "flipped along the other diagonal",
)
"""The symmetries of the square: turn t mirrors left-right if t > 3, then rotates t % 4 quarters counter-clockwise."""

CROPS = MAX_CROP * np.array([[0, 0, 0, 0], [1, 1, 1, 1], [1, 0, 1, 0], [1, 0, 0, 1], [0, 1, 1, 0], [0, 1, 0, 1]])
"""Shares cut from top, bottom, left and right of a picture before it is compared with the others, which are whole."""

PATCH_PX, SKETCH_PX, DIMENSIONS = 96, 24, 96
"""Sides of what is registered and of what is searched, and the search's dimensions."""

NEIGHBOURS, SURE_NEIGHBOURS, EARLIEST, MIN_LOG_ODDS = 10, 2, 4, 10.0
"""Most proposals of a picture; those made whatever their log-likelihood ratio, which must else be above the last; and
the first rows that are added where there are more."""

SAMPLE, COPIES, TEXTURES = 600, 4, 200
"""Pictures the search is fitted to, changed copies of each, and the least number, made up of random textures."""

QUERY_CHUNK, TARGET_CHUNK, BATCH = 64, 4096, 256
"""Rows compared at once, which bounds the memory, and proposals between two looks at what is known by then."""

MAX_LINKS = 4
"""Pairs of a row after which others inside its cluster are left out, as each of 200 copies is like all others."""


@dataclass(frozen=True)
class Pair:
    """Two rows that show one picture.

    Attributes:
        first: row.
        second: a later row.
        similarity: correlation of the fine structure after registration, 0..1.
        change: how `second` must be turned to match `first`, one of `TURNS`.
    """

    first: int
    second: int
    similarity: float
    change: str


Proposal = tuple[int, int, int, float]
"""First and second row, how the second is to be turned, and the log-likelihood ratio."""

Views = tuple[np.ndarray, np.ndarray, np.ndarray]
"""A picture as registration sees it: its patch, and a coarse (at half the size) and a medium band of that."""


def find_near_duplicates(
    pictures: Pictures, boxes: np.ndarray, *, rows: np.ndarray | None = None, progress: bool = True, workers: int = 1
) -> list[Pair]:
    """Find pictures that are one another, resized, recompressed, cropped, re-exposed, flipped or turned.

    Crops of up to 5 % of each side are found, in any combination with the other changes; blank pictures never. Each
    near-duplicate is linked to another of its kind, but of many copies of one picture not all pairs are listed. Time
    grows with the number of pictures, and a small part of it with the square; memory is about 2 kB per picture and
    300 MB besides.

    Args:
        pictures: row → uint8 (S, S, C) in 0..255, C 1 or 3.
        boxes: int64 (N, 4): top, bottom, left and right of what is not padding.
        rows: which rows to compare; None: all N.
        progress: show a progress bar.
        workers: threads; the result does not depend on them.

    Returns:
        Pairs of rows, sorted.
    """
    wanted = np.unique(np.arange(len(boxes)) if rows is None else rows).tolist()
    hidden = None if progress else True

    def patch(row: int) -> np.ndarray:
        return _patch(pictures[row], boxes[row])

    def sketch(row: int) -> np.ndarray | None:
        grey = patch(row)
        return _sketch(grey).astype(np.float16) if _has_texture(grey) else None

    def queries(row: int) -> np.ndarray:
        grey = patch(row)
        sketches = [_sketch(_cropped(grey, sides)) for sides in CROPS]
        return np.stack([turned(sketch, turn).ravel() for turn in range(8) for sketch in sketches])

    @lru_cache(maxsize=5_000)
    def views(row: int) -> Views:
        return _views(patch(row))

    def measure(proposal: Proposal) -> float:
        first, second, turn, _ = proposal
        return _similarity(_turned_views(views(first), 0), _turned_views(views(second), turn))

    with ThreadPoolExecutor(max(1, workers)) as pool:
        bar = tqdm(pool.map(sketch, wanted), "sketching images", len(wanted), disable=hidden, unit="image", leave=False)
        sketches = {row: found for row, found in zip(wanted, bar, strict=True) if found is not None}
        if len(sketches) < 2:
            return []
        search = _Search.fit(patch, list(sketches))
        with tqdm(desc="comparing images", total=len(sketches), disable=hidden, unit="image", leave=False) as bar:
            proposals = search.propose(sketches, lambda chunk: np.stack(list(pool.map(queries, chunk))), bar)
        with tqdm(desc="confirming pairs", total=len(proposals), disable=hidden, unit="pair", leave=False) as bar:
            return sorted(_confirmed(proposals, measure, pool, bar), key=lambda pair: (pair.first, pair.second))


def turned(image: np.ndarray, turn: int) -> np.ndarray:
    """Return a picture (H, W, ...) mirrored and rotated as `TURNS[turn]` says.

    >>> turned(np.array([[1, 2], [3, 4]]), TURNS.index("flipped along the main diagonal")).tolist()
    [[1, 3], [2, 4]]
    """
    return np.ascontiguousarray(np.rot90(image[:, ::-1] if turn > 3 else image, turn % 4))


def _patch(picture: np.ndarray, box: np.ndarray) -> np.ndarray:
    """Content of a picture as a square, float32 (PATCH_PX, PATCH_PX) in 0..255; its aspect ratio is left behind."""
    top, bottom, left, right = box
    content = picture[top:bottom, left:right].astype(np.float32)
    grey = cv2.cvtColor(content, cv2.COLOR_RGB2GRAY) if content.shape[2] == 3 else content[..., 0]
    mode = cv2.INTER_AREA if max(grey.shape) > PATCH_PX else cv2.INTER_LINEAR
    return cv2.resize(grey, (PATCH_PX, PATCH_PX), interpolation=mode)


def _band(grey: np.ndarray, *, fine: float, coarse: float, window: float) -> tuple[np.ndarray, np.ndarray]:
    """Structure between two scales in pixels, and its local amplitude."""
    band = cv2.GaussianBlur(grey, (0, 0), fine) - cv2.GaussianBlur(grey, (0, 0), coarse)
    return band, np.sqrt(cv2.GaussianBlur(band * band, (0, 0), window))


def _contrast(grey: np.ndarray, *, fine: float, coarse: float, window: float) -> np.ndarray:
    """A band over its local amplitude: exposure drops out, and no edge outweighs the rest."""
    band, amplitude = _band(grey, fine=fine, coarse=coarse, window=window)
    # Not below one grey level, which is rounding. The amplitude is smooth, so few of its values give the median.
    return band / (amplitude + max(1.0, 0.3 * float(np.median(amplitude[::4, ::4]))))


def _fine_contrast(grey: np.ndarray) -> np.ndarray:
    return _contrast(grey, fine=1.0, coarse=2.0, window=5.0)


def _has_texture(grey: np.ndarray) -> bool:
    _, amplitude = _band(grey, fine=1.0, coarse=2.0, window=5.0)
    return bool((amplitude > 0.5).mean() >= MIN_TEXTURE)


def _half(image: np.ndarray) -> np.ndarray:
    return cv2.resize(image, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)


def _sketch(grey: np.ndarray) -> np.ndarray:
    """Coarse local contrast of a patch, float32 (SKETCH_PX, SKETCH_PX)."""
    return _half(_contrast(_half(grey), fine=1.0, coarse=5.0, window=7.0))


def _warped(image: np.ndarray, matrix: np.ndarray, border: int = cv2.BORDER_REFLECT) -> np.ndarray:
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(image, matrix, image.shape[::-1], flags=flags, borderMode=border)


def _cropped(grey: np.ndarray, sides: np.ndarray) -> np.ndarray:
    """Cut shares of top, bottom, left and right away and enlarge the rest."""
    top, bottom, left, right = sides
    size = len(grey)
    return _warped(grey, np.array([[1 - left - right, 0, left * size], [0, 1 - top - bottom, top * size]]))


class _Search:
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
    def fit(cls, patch: Callable[[int], np.ndarray], rows: list[int]) -> "_Search":
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
        changed = 255 * (_cropped(grey, sides) / 255) ** np.exp(rng.uniform(-0.5, 0.5))
        changed = (changed - 128) * rng.uniform(0.7, 1.3) + 128 + rng.uniform(-30, 30)
        changed = np.clip(changed + rng.normal(0, 1, grey.shape), 0, 255).astype(np.float32)
        sketches.append(turned(_sketch(changed), turn).ravel())
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


def _confirmed(
    proposals: list[Proposal], measure: Callable[[Proposal], float], pool: Executor, bar: tqdm
) -> Iterator[Pair]:
    """Yield the proposals that hold, but few of those inside a cluster that is known by then."""
    clusters: dict[int, set[int]] = {row: {row} for proposal in proposals for row in proposal[:2]}
    links = dict.fromkeys(clusters, 0)
    for start in range(0, len(proposals), BATCH):
        batch = proposals[start : start + BATCH]
        wanted = [
            (first, second, turn, log_odds)
            for first, second, turn, log_odds in batch
            if clusters[first] is not clusters[second] or min(links[first], links[second]) < MAX_LINKS
        ]
        for (first, second, turn, _), similarity in zip(wanted, pool.map(measure, wanted), strict=True):
            if similarity < MIN_SIMILARITY:
                continue
            yield Pair(first, second, similarity, TURNS[turn])
            links[first], links[second] = links[first] + 1, links[second] + 1
            if clusters[first] is not clusters[second]:
                small, large = sorted((clusters[first], clusters[second]), key=len)
                large |= small
                clusters.update(dict.fromkeys(small, large))
        bar.update(len(batch))


def _views(grey: np.ndarray) -> Views:
    coarse = _half(_contrast(grey, fine=2.0, coarse=8.0, window=10.0))
    medium = _contrast(grey, fine=1.5, coarse=3.0, window=6.0)
    return grey.astype(np.float16), coarse.astype(np.float16), medium.astype(np.float16)


def _turned_views(views: Views, turn: int) -> Views:
    """As float32 and turned; filters without direction need not be applied again."""
    grey, coarse, medium = (turned(view, turn).astype(np.float32) for view in views)
    return grey, coarse, medium


def _similarity(first: Views, second: Views) -> float:
    """Register two pictures and correlate their fine structure: 0..1, 0 where they do not fit."""
    try:
        matrix = _doubled(_registered(first[1], second[1], np.eye(2, 3, dtype=np.float32)))
        inside = _overlap(first[0], second[0], matrix)
        if _correlation(first[2] * inside, _warped(second[2], matrix) * inside) < MIN_MEDIUM_SIMILARITY:
            return 0.0
        a, b = (_contrast(grey, fine=1.0, coarse=5.0, window=8.0) for grey in (first[0], second[0]))
        matrix = _without_shear(_registered(a, b, matrix), size=len(a))
    except cv2.error:  # the registration does not converge
        return 0.0
    if matrix is None:
        return 0.0
    inside = _overlap(first[0], second[0], matrix)
    a, b = (_fine_contrast(grey) * inside for grey in (first[0], _warped(second[0], matrix)))
    return _correlation(a, b) if _agree_everywhere(a, b, inside) else 0.0


def _registered(first: np.ndarray, second: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Return how `second` must be warped to lie on `first`, float32 (2, 3).

    The enhanced correlation coefficient is maximised (Evangelidis, Psarakis, IEEE TPAMI 2008).

    Raises:
        cv2.error: it does not converge.
    """
    everywhere = np.ones(first.shape, dtype=np.uint8)
    criteria = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 20, 1e-3)
    _, matrix = cv2.findTransformECC(first, second, matrix.copy(), cv2.MOTION_AFFINE, criteria, everywhere, 1)
    return np.asarray(matrix, dtype=np.float32)


def _doubled(matrix: np.ndarray) -> np.ndarray:
    """Return the same warp for pictures of twice the size; pixel 0 of the half lies between 0 and 1 of the whole."""
    offset = 2 * matrix[:, 2] + 0.5 - 0.5 * matrix[:, :2].sum(axis=1)
    return np.column_stack([matrix[:, :2], offset]).astype(np.float32)


def _without_shear(matrix: np.ndarray, *, size: int) -> np.ndarray | None:
    """Return the stretch and shift of a warp, or None where a crop cannot be their cause.

    A crop never shears: what shear would gain is chance.
    """
    centre = np.full(2, (size - 1) / 2)
    moved = matrix[:, :2] @ centre + matrix[:, 2]
    scale = np.diag(matrix[:, :2])
    if np.abs(scale - 1).max() > MAX_STRETCH or np.abs(moved - centre).max() > MAX_SHIFT * size:
        return None
    return np.column_stack([np.diag(scale), moved - scale * centre]).astype(np.float32)


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.clip((a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum() + 1e-9), 0.0, 1.0))


def _agree_everywhere(a: np.ndarray, b: np.ndarray, inside: np.ndarray) -> bool:
    """Return whether there is structure, and even its worst tenth correlates."""
    share, aa, bb, ab = (
        cv2.GaussianBlur(part, (0, 0), 4.0) for part in (inside.astype(np.float32), a * a, b * b, a * b)
    )
    structured = (share > 0.4) & (np.minimum(aa, bb) > 0.1 * share)
    if structured.mean() < MIN_TEXTURE:
        return False
    local = ab[structured] / np.sqrt(aa[structured] * bb[structured])
    return bool(np.percentile(local, 10) >= MIN_LOCAL_SIMILARITY)


def _overlap(first: np.ndarray, second: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Where `first` and the warped `second` both hold picture that clipping left alone, bool (S, S).

    A margin is left out: there the filters have seen what lies beyond the edge.
    """
    clean = _warped(_unsaturated(second), matrix, cv2.BORDER_CONSTANT) > 0.5
    within = _warped(np.ones_like(second), matrix, cv2.BORDER_CONSTANT) > 0.99
    within = cv2.erode(within.astype(np.uint8), np.ones((5, 5), dtype=np.uint8), borderValue=1)
    return clean & (within > 0) & (_unsaturated(first) > 0)


def _unsaturated(grey: np.ndarray) -> np.ndarray:
    """Where a patch is neither black nor white, nor next to it, float32 0 or 1."""
    return cv2.erode(((grey > 2) & (grey < 253)).astype(np.float32), np.ones((3, 3), dtype=np.uint8))
