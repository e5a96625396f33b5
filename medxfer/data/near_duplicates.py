"""Near-duplicate pictures: the same one resized, recompressed, cropped a little, re-exposed, flipped or turned.

Two steps. A sketch of every picture (its local contrast on a coarse grid, projected on what survives such changes best)
proposes a few others, in all eight orientations. Each proposal is then registered, and the fine structure of the two
pictures is correlated: chests of two patients are alike in shape, but not in fine structure.
"""

import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO

import cv2
import numpy as np
from tqdm import tqdm

from medxfer.data.dataset import Pictures
from medxfer.data.patches import (
    MIN_TEXTURE,
    TURNS,
    contrast,
    cropped,
    fine_contrast,
    half,
    has_texture,
    patch_of,
    sketch_of,
    turned,
    warped,
)
from medxfer.data.sketch_search import CROPS, SketchSearch

MIN_SIMILARITY = 0.78
"""Least correlation of near-duplicates; `benchmarks/near_duplicates.py` prints the curve behind it."""

MIN_LOCAL_SIMILARITY = 0.1
"""Least correlation in the worst tenth of the picture: a frame, a ruler or a marker alone makes no duplicate."""

MIN_MEDIUM_SIMILARITY = 0.65
"""Least correlation of coarser structure, after a coarse registration, that is worth a fine one."""

MAX_STRETCH, MAX_SHIFT = 0.15, 0.09
"""Stretch and shift of the centre, as shares of the side, that a crop and another of the other sides may explain."""

SKETCHED_AT_ONCE = 4096
"""Pictures whose sketches are in memory at a time."""

BATCH = 256
"""Proposals between two looks at what is known by then."""

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


Proposal = tuple[int, int, int]
"""First and second row, and how the second is to be turned."""

Views = tuple[np.ndarray, np.ndarray, np.ndarray]
"""A picture as registration sees it: its patch, and a coarse (at half the size) and a medium band of that."""


def find_near_duplicates(
    pictures: Pictures,
    boxes: np.ndarray,
    *,
    rows: np.ndarray | None = None,
    progress: bool = True,
    workers: int = 1,
    folder: Path | None = None,
) -> list[Pair]:
    """Find pictures that are one another, resized, recompressed, cropped, re-exposed, flipped or turned.

    Crops of up to 5 % of each side are found, in any combination with the other changes; blank pictures never. Each
    near-duplicate is linked to another of its kind, but of many copies of one picture not all pairs are listed. Time
    grows with the number of pictures; memory is about 400 bytes per picture, with as much on disk, and 300 MB besides.

    Args:
        pictures: row → uint8 (S, S, C) in 0..255, C 1 or 3.
        boxes: int64 (N, 4): top, bottom, left and right of what is not padding.
        rows: which rows to compare; None: all N.
        progress: show a progress bar.
        workers: threads; the result does not depend on them.
        folder: of a temporary file; None: the system's.

    Returns:
        Pairs of rows, sorted.
    """
    wanted = np.unique(np.arange(len(boxes)) if rows is None else rows)
    hidden = None if progress else True

    def patch(row: int) -> np.ndarray:
        return patch_of(pictures[row], boxes[row])

    @lru_cache(maxsize=5_000)
    def views(row: int) -> Views:
        return _views(patch(row))

    def measure(proposal: Proposal) -> float:
        first, second, turn = proposal
        return _similarity(_turned_views(views(first), 0), _turned_views(views(second), turn))

    with ThreadPoolExecutor(max(1, workers)) as pool, tempfile.TemporaryFile(dir=folder) as file:
        search = SketchSearch.fit(patch, wanted)
        with tqdm(desc="sketching images", total=len(wanted), disable=hidden, unit="image", leave=False) as bar:
            textured = _write_vectors(file, search, lambda row: _sketch(patch(row)), wanted, pool, bar)
        if len(textured) < 2:
            return []
        targets = np.memmap(file, dtype=np.float32, mode="r").reshape(len(textured), -1)
        with tqdm(desc="comparing images", total=len(textured), disable=hidden, unit="image", leave=False) as bar:
            proposals = search.propose(
                textured, targets, lambda some: np.stack(list(pool.map(lambda row: _queries(patch(row)), some))), bar
            )
        with tqdm(desc="confirming pairs", total=len(proposals), disable=hidden, unit="pair", leave=False) as bar:
            return sorted(_confirmed(proposals, measure, pool, bar), key=lambda pair: (pair.first, pair.second))


def _sketch(grey: np.ndarray) -> np.ndarray | None:
    return sketch_of(grey).ravel() if has_texture(grey) else None


def _queries(grey: np.ndarray) -> np.ndarray:
    """Return the sketches that are compared with those of other pictures, (8 · len(CROPS), F), turn by turn."""
    sketches = [sketch_of(cropped(grey, sides)) for sides in CROPS]
    return np.stack([turned(sketch, turn).ravel() for turn in range(8) for sketch in sketches])


def _write_vectors(
    file: IO[bytes],
    search: SketchSearch,
    sketch: Callable[[int], np.ndarray | None],
    rows: np.ndarray,
    pool: Executor,
    bar: tqdm,
) -> np.ndarray:
    """Write what the search compares of each row that shows anything, and return these rows."""
    kept: list[int] = []
    for start in range(0, len(rows), SKETCHED_AT_ONCE):
        some = rows[start : start + SKETCHED_AT_ONCE].tolist()
        sketches = {row: found for row, found in zip(some, pool.map(sketch, some), strict=True) if found is not None}
        if sketches:  # written, and mapped later: on a full disk writing to a map would end the process
            file.write(search.vectors(np.stack(list(sketches.values())), side=0).tobytes())
        kept += list(sketches)
        bar.update(len(some))
    file.flush()
    return np.array(kept, dtype=np.int64)


def _confirmed(
    proposals: np.ndarray, measure: Callable[[Proposal], float], pool: Executor, bar: tqdm
) -> Iterator[Pair]:
    """Yield the proposals that hold, but few of those inside a cluster that is known by then."""
    clusters: dict[int, set[int]] = {}
    links: Counter[int] = Counter()
    for start in range(0, len(proposals), BATCH):
        batch = proposals[["first", "second", "turn"]][start : start + BATCH].tolist()
        wanted = [
            (first, second, turn)
            for first, second, turn in batch
            if second not in clusters.get(first, ()) or min(links[first], links[second]) < MAX_LINKS
        ]
        for (first, second, turn), similarity in zip(wanted, pool.map(measure, wanted), strict=True):
            if similarity < MIN_SIMILARITY:
                continue
            yield Pair(first, second, similarity, TURNS[turn])
            links.update((first, second))
            ours, others = (clusters.setdefault(row, {row}) for row in (first, second))
            if ours is not others:
                small, large = sorted((ours, others), key=len)
                large |= small
                clusters.update(dict.fromkeys(small, large))
        bar.update(len(batch))


def _views(grey: np.ndarray) -> Views:
    coarse = half(contrast(grey, fine=2.0, coarse=8.0, window=10.0))
    medium = contrast(grey, fine=1.5, coarse=3.0, window=6.0)
    return grey.astype(np.float16), coarse.astype(np.float16), medium.astype(np.float16)


def _turned_views(views: Views, turn: int) -> Views:
    """As float32 and turned; filters without direction need not be applied again."""
    grey, coarse, medium = (turned(view, turn).astype(np.float32) for view in views)
    return grey, coarse, medium


def _similarity(first: Views, second: Views) -> float:
    """Register two pictures and correlate their fine structure: 0..1, 0 where they do not fit or less than needed."""
    try:
        matrix = _doubled(_registered(first[1], second[1], np.eye(2, 3, dtype=np.float32)))
        inside = _overlap(first[0], second[0], matrix)
        if _correlation(first[2] * inside, warped(second[2], matrix) * inside) < MIN_MEDIUM_SIMILARITY:
            return 0.0
        a, b = (contrast(grey, fine=1.0, coarse=5.0, window=8.0) for grey in (first[0], second[0]))
        matrix = _without_shear(_registered(a, b, matrix), size=len(a))
    except cv2.error:  # the registration does not converge
        return 0.0
    if matrix is None:
        return 0.0
    inside = _overlap(first[0], second[0], matrix)
    a, b = (fine_contrast(grey) * inside for grey in (first[0], warped(second[0], matrix)))
    similarity = _correlation(a, b)
    return similarity if similarity >= MIN_SIMILARITY and _agree_everywhere(a, b, inside) else 0.0


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
    clean = warped(_unsaturated(second), matrix, cv2.BORDER_CONSTANT) > 0.5
    within = warped(np.ones_like(second), matrix, cv2.BORDER_CONSTANT) > 0.99
    within = cv2.erode(within.astype(np.uint8), np.ones((5, 5), dtype=np.uint8), borderValue=1)
    return clean & (within > 0) & (_unsaturated(first) > 0)


def _unsaturated(grey: np.ndarray) -> np.ndarray:
    """Where a patch is neither black nor white, nor next to it, float32 0 or 1."""
    return cv2.erode(((grey > 2) & (grey < 253)).astype(np.float32), np.ones((3, 3), dtype=np.uint8))
