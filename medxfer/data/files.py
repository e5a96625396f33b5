"""Image files as examples, for prediction: decoded when they are needed, never kept."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from medxfer.data.fitting import fit_image
from medxfer.data.reading import find_images, read_image
from medxfer.errors import DataError


class FileDataset(Dataset[dict[str, Any]]):
    """Decodes one file per item.

    Item i: `row` i, and either `image` uint8 (S, S, C) in 0..255 or `reason`, why it cannot be read.

    Args:
        files: the images.
        channels: 1 or 3.
        size_px: side of the pictures.
        fit: pad, crop or stretch.
    """

    def __init__(self, files: Sequence[Path], *, channels: int, size_px: int, fit: str) -> None:
        self.files = files
        self.channels = channels
        self.size_px = size_px
        self.fit = fit

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, row: int) -> dict[str, Any]:
        try:
            image = read_image(self.files[row], channels=self.channels)
        except DataError as error:
            return {"row": row, "reason": str(error).removeprefix(f"{self.files[row]}: ")}
        return {"row": row, "image": fit_image(image, size_px=self.size_px, fit=self.fit)}


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
