"""From the data section of a config to one collection: labels, decoded pictures, and the split."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medxfer.config import DataConfig
from medxfer.data.decoding import Settings
from medxfer.data.duplicates import Duplicates, find_duplicates
from medxfer.data.manifest import Manifest, joined, read_manifest
from medxfer.data.splits import check_split, split_by_fold, split_by_group
from medxfer.data.store import PixelStore, build_store
from medxfer.errors import DataError, listed

CHANNELS = {"xray": 1, "dermoscopy": 3}
"""Channels that a modality's pictures are stored with."""


@dataclass(frozen=True)
class Collection:
    """Images that can be trained on: row i of each part is the same image.

    Attributes:
        manifest: paths, targets, classes, patients.
        pictures: uint8 (S, S, C) per row.
        splits: train, val or test per row.
        skipped: path and reason of each unreadable image that was left out.
        duplicates: images that occur more than once; a split that is made here keeps them together.
    """

    manifest: Manifest
    pictures: PixelStore
    splits: np.ndarray
    skipped: list[tuple[str, str]]
    duplicates: Duplicates


def build_collection(config: DataConfig, *, store_folder: Path, seed: int, workers: int) -> Collection:
    """Read the labels, decode every image once, and split by patient.

    Args:
        config: the data section; `source` is set.
        store_folder: where decoded pictures are kept.
        seed: of the split.
        workers: processes that decode.

    Raises:
        DataError: with all that is wrong with the table, the images or the split.
    """
    manifest = read_manifest(
        Path(config.source or ""),
        image_root=Path(config.image_root) if config.image_root else None,
        path_column=config.path_column,
        label_columns=config.label_columns,
        patient_column=config.patient_column,
        group_columns=config.group_columns,
        split_column=config.split_column,
        task=config.task,
        class_names=config.class_names,
        allow_outside_root=config.allow_outside_root,
    )
    settings = Settings(
        CHANNELS[config.modality], config.image_size_px, config.fit, max_pixels=config.max_pixels, frame=config.frame
    )
    manifest, pictures, skipped = decode(
        manifest,
        folder=store_folder,
        settings=settings,
        on_unreadable=config.on_unreadable,
        workers=workers,
    )
    near = config.near_duplicates != "off"
    duplicates = find_duplicates(pictures, near=near, folder=store_folder, workers=workers)
    # Where copies are only warned of, they may be no copies: then they do not decide the split either.
    together = duplicates.sets() if config.near_duplicates == "error" else duplicates.identical
    try:
        splits = _split(config, manifest, joined(manifest.groups(), together), seed)
    except DataError as error:
        raise DataError("\n".join([str(error), *_reasons(manifest, skipped, together)])) from error
    return Collection(manifest, pictures, splits, skipped, duplicates)


def _reasons(manifest: Manifest, skipped: Sequence[tuple[str, str]], together: Sequence[np.ndarray]) -> Iterator[str]:
    """Yield what may be behind a split that cannot be made or used."""
    if skipped:
        yield listed("unreadable images are left out:", [f"{path}: {reason}" for path, reason in skipped])
    if manifest.splits is None and together:
        same = [" and ".join(manifest.paths[row] for row in rows[:3]) for rows in together]
        yield listed("copies are kept together, which leaves fewer groups to split:", same, limit=5)
        yield "if these are no copies: --data.near_duplicates warn"


def decode(
    manifest: Manifest,
    *,
    folder: Path,
    settings: Settings,
    on_unreadable: str,
    workers: int,
) -> tuple[Manifest, PixelStore, list[tuple[str, str]]]:
    """Decode a manifest's images into the store, and drop the rows of those that cannot be read.

    Returns:
        The manifest of what is left, its pictures, and path and reason of what was dropped.
    """
    pictures, unreadable = build_store(
        manifest.files,
        folder=folder,
        settings=settings,
        on_unreadable=on_unreadable,
        workers=workers,
    )
    skipped = [(manifest.paths[row], reason.removeprefix(f"{manifest.files[row]}: ")) for row, reason in unreadable]
    if skipped:
        manifest = manifest.subset(_others(len(manifest), [row for row, _ in unreadable]))
    return manifest, pictures, skipped


def _others(size: int, rows: Sequence[int]) -> np.ndarray:
    return np.setdiff1d(np.arange(size), np.asarray(rows, dtype=int))


def _split(config: DataConfig, manifest: Manifest, groups: np.ndarray, seed: int) -> np.ndarray:
    if manifest.splits is not None and config.folds:
        raise DataError(
            f"data.folds is {config.folds}, but the source gives the splits itself: set data.folds to 0, or have "
            "medxfer split by patient: --data.split_column none"
        )
    if manifest.splits is not None:
        check_split(manifest.splits, manifest.targets, class_names=manifest.class_names)
        return manifest.splits
    shared = {"seed": seed, "class_names": manifest.class_names}
    if config.folds:
        return split_by_fold(manifest.targets, groups, folds=config.folds, fold=config.fold, **shared)
    return split_by_group(
        manifest.targets,
        groups,
        val_fraction=config.val_fraction,
        test_fraction=config.test_fraction,
        **shared,
    )
