"""From the data section of a config to one collection: labels, decoded pictures, and the split."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medxfer.config import DataConfig
from medxfer.data.manifest import Manifest, read_manifest
from medxfer.data.splits import check_split, split_by_fold, split_by_group
from medxfer.data.store import PixelStore, build_store
from medxfer.errors import DataError

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
    """

    manifest: Manifest
    pictures: PixelStore
    splits: np.ndarray
    skipped: list[tuple[str, str]]


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
        split_column=config.split_column,
        task=config.task,
        class_names=config.class_names,
    )
    manifest, pictures, skipped = decode(
        manifest,
        folder=store_folder,
        channels=CHANNELS[config.modality],
        size_px=config.image_size_px,
        fit=config.fit,
        on_unreadable=config.on_unreadable,
        workers=workers,
    )
    return Collection(manifest, pictures, _split(config, manifest, seed), skipped)


def decode(
    manifest: Manifest,
    *,
    folder: Path,
    channels: int,
    size_px: int,
    fit: str,
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
        channels=channels,
        size_px=size_px,
        fit=fit,
        on_unreadable=on_unreadable,
        num_workers=workers,
        progress=True,
    )
    skipped = [(manifest.paths[row], reason) for row, reason in unreadable]
    if skipped:
        manifest = manifest.subset(_others(len(manifest), [row for row, _ in unreadable]))
    return manifest, pictures, skipped


def _others(size: int, rows: Sequence[int]) -> np.ndarray:
    return np.setdiff1d(np.arange(size), np.asarray(rows, dtype=int))


def _split(config: DataConfig, manifest: Manifest, seed: int) -> np.ndarray:
    if manifest.splits is not None and config.folds:
        raise DataError(
            f"data.folds is {config.folds}, but the source gives the splits itself: set data.folds to 0, or have "
            "medxfer split by patient: --data.split_column none"
        )
    if manifest.splits is not None:
        check_split(manifest.splits, manifest.targets, manifest.groups(), class_names=manifest.class_names)
        return manifest.splits
    shared = {"seed": seed, "class_names": manifest.class_names}
    if config.folds:
        return split_by_fold(manifest.targets, manifest.groups(), folds=config.folds, fold=config.fold, **shared)
    return split_by_group(
        manifest.targets,
        manifest.groups(),
        val_fraction=config.val_fraction,
        test_fraction=config.test_fraction,
        **shared,
    )
