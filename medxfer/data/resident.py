"""Pictures kept in the memory of a device, so that a batch is a gather there."""

import numpy as np
import psutil
import torch
from torch import Tensor

from medxfer.data.dataset import Pictures
from medxfer.errors import ConfigError

LARGEST_SHARE = 1 / 3
"""Share of a device's free memory that pictures may take.

The rest is for training: with all blocks tuned in float32 at 299 px, an image of a batch keeps about 0.1 GB until the
backward pass, so that batches of 64 fit beside the pictures on a device of 16 GB, and batches of 256 on one of 80 GB.
"""

BLOCK_BYTES = 2**25
"""Pictures are copied to the device in blocks of about this size."""


class ResidentPictures:
    """Rows of a store in one tensor on a device.

    Attributes:
        rows: of the store that are held, ascending, int64 (N,).
        images: their pictures, uint8 (N, C, S, S) in 0..255.

    Args:
        pictures: the store.
        rows: which of its rows, at least one, in any order.
        device: where they are kept; see `fits`.
    """

    def __init__(self, pictures: Pictures, rows: np.ndarray, *, device: torch.device) -> None:
        self.rows = np.unique(rows)  # in the order in which they lie on disk
        height, width, channels = pictures[int(self.rows[0])].shape
        self.images = torch.empty((len(self.rows), channels, height, width), dtype=torch.uint8, device=device)
        self._fill(pictures)

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, rows: np.ndarray) -> Tensor:
        """Return pictures of rows that are held, uint8 (B, C, S, S) in 0..255 on the device, in the order asked for.

        Raises:
            KeyError: some are not held.
        """
        places = np.searchsorted(self.rows, rows)
        wrong = self.rows[np.minimum(places, len(self.rows) - 1)] != rows
        if wrong.any():
            raise KeyError(f"rows {np.asarray(rows)[wrong][:5].tolist()} are not held on {self.images.device}")
        index = torch.from_numpy(places)
        if self.images.device.type == "cuda":
            index = index.pin_memory().to(self.images.device, non_blocking=True)
        return self.images.index_select(0, index.to(self.images.device))

    def _fill(self, pictures: Pictures) -> None:
        count, channels, height, width = self.images.shape
        at_once = min(count, max(1, BLOCK_BYTES // self.images[0].numel()))
        pinned = self.images.device.type == "cuda"  # page-locked memory crosses the bus several times faster
        block = torch.empty((at_once, height, width, channels), dtype=torch.uint8, pin_memory=pinned)
        staging = block.numpy()
        for start in range(0, count, at_once):
            rows = self.rows[start : start + at_once]
            for place, row in enumerate(rows):
                staging[place] = pictures[int(row)]
            # The copy ends before the block is filled again; channels go first on the device, which is faster at that.
            there = block[: len(rows)].to(self.images.device)
            self.images[start : start + len(rows)].copy_(there.permute(0, 3, 1, 2))


def fits(rows: int, row_bytes: int, device: torch.device) -> bool:
    """Return whether pictures may be kept on a device: in at most a third of the memory that is free there.

    Args:
        rows: number of pictures.
        row_bytes: bytes of one.
        device: a GPU, or the CPU with what its system calls available.
    """
    return rows * row_bytes <= LARGEST_SHARE * _free_bytes(device)


def require_fit(rows: int, row_bytes: int, device: torch.device) -> None:
    """Stop where pictures must not be kept on a device; see `fits`.

    Raises:
        ConfigError: they would take more than a third of its free memory.
    """
    free = _free_bytes(device)
    if rows * row_bytes > LARGEST_SHARE * free:
        raise ConfigError(
            f"data.resident: on keeps {rows:,} decoded images in the memory of {device}, in at most a third of what "
            f"is free, since training needs the rest: they take {rows * row_bytes / 2**20:,.0f} MB, and "
            f"{free / 2**20:,.0f} MB are free; set data.resident to auto or off, or a smaller data.image_size_px"
        )


def _free_bytes(device: torch.device) -> int:
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
