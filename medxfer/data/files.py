"""Image files as examples, for prediction: decoded when they are needed, never kept."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import IterableDataset

from medxfer.data.decoding import Settings, decode_files
from medxfer.data.reading import find_images
from medxfer.errors import DataError


class FileStream(IterableDataset[dict[str, Any]]):
    """Decodes files in order, in processes of its own; a loader around it needs no workers.

    Item i: `row` i, and either `image` uint8 (S, S, C) in 0..255 or `reason`, why it cannot be read.

    Args:
        files: the images.
        settings: how they are decoded.
        workers: processes that decode.
    """

    def __init__(self, files: Sequence[Path], settings: Settings, *, workers: int) -> None:
        self.files = files
        self.settings = settings
        self.workers = workers

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for row, decoded in enumerate(decode_files(self.files, self.settings, workers=self.workers)):
            if decoded.image is None:
                yield {"row": row, "reason": decoded.reason}
            else:
                yield {"row": row, "image": decoded.image}


def collate_files(items: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Join items: `image` uint8 (B, C, S, S) and `row` int64 (B,) of the readable ones, `failures` of the others."""
    good = [item for item in items if "image" in item]
    failures = [(item["row"], item["reason"]) for item in items if "reason" in item]
    batch: dict[str, Any] = {
        "row": torch.tensor([item["row"] for item in good], dtype=torch.int64),
        "failures": failures,
    }
    if good:
        batch["image"] = torch.from_numpy(np.stack([item["image"] for item in good])).permute(0, 3, 1, 2)
    return batch


def expand_inputs(inputs: Sequence[Path]) -> list[Path]:
    """Replace folders by the images below them; a file, even a missing one, stays and gets its own row.

    Raises:
        DataError: a folder holds no image.
    """
    files: list[Path] = []
    for path in inputs:
        if path.is_dir():
            found = find_images(path)
            if not found:
                raise DataError(
                    f"the folder {path} holds no image that can be read (PNG, JPEG, TIFF, BMP, WebP, DICOM)"
                )
            files.extend(found)
        else:
            files.append(path)
    return files
