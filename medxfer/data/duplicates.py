"""Which pictures of a collection are the same one: equal pixels, or nearly equal ones."""

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from medxfer.data.cache import remembered
from medxfer.data.manifest import sets_of
from medxfer.data.near_duplicates import Pair, find_near_duplicates
from medxfer.data.store import PixelStore

VERSION = 2
"""Counts changes of the search that change what it finds."""


@dataclass(frozen=True)
class Duplicates:
    """Pictures that occur more than once.

    Attributes:
        identical: rows of each picture whose decoded pixels occur more than once.
        similar: pairs of rows that are nearly the same; of identical pictures only the first row takes part.
    """

    identical: list[np.ndarray]
    similar: list[Pair]

    def sets(self) -> list[np.ndarray]:
        """Return rows that should stay on one side of a split."""
        return [*self.identical, *(np.array([pair.first, pair.second]) for pair in self.similar)]


def find_duplicates(pictures: PixelStore, *, near: bool, folder: Path, workers: int) -> Duplicates:
    """Find pictures that occur more than once.

    Args:
        pictures: the collection.
        near: whether nearly equal pictures are sought too.
        folder: where the result is kept for the next time.
        workers: threads that search.
    """
    _, members = np.unique(pictures.pixel_digests(), return_inverse=True)
    sets = sets_of(members)
    if not near:
        return Duplicates(sets, [])
    _, firsts = np.unique(members, return_index=True)

    def search() -> list[dict]:
        found = find_near_duplicates(pictures, pictures.boxes, rows=np.sort(firsts), workers=workers, folder=folder)
        return [asdict(pair) for pair in found]

    pairs = remembered(
        folder, "near-duplicates", [str(VERSION), pictures.settings_name(), pictures.content_digest()], search
    )
    return Duplicates(sets, [Pair(**pair) for pair in pairs])
