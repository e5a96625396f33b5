"""How many pictures to pass through the network at once where nothing is trained."""

import psutil
import torch

LARGEST = {"cpu": 64, "cuda": 1024}
"""Beyond this many pictures a larger batch is no faster."""

SHARE = {"cpu": 0.25, "cuda": 0.5}
"""Share of the free memory that a batch may take."""

VALUES_PER_PIXEL = 4 * (32 + 64) / 4
"""Values per pixel of the input at the peak: the widest convolution reads 32 and writes 64 channels at half the
resolution; four times that leaves room for copies and workspaces."""


def inference_batch(size_px: int, *, bytes_per_value: int, device: torch.device) -> int:
    """Return the largest batch that fits and pays, a power of two.

    Args:
        size_px: side of the pictures.
        bytes_per_value: of activations, 2 or 4.
        device: where the network runs.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
    else:
        free = psutil.virtual_memory().available
    fits = SHARE[device.type] * free / (VALUES_PER_PIXEL * size_px**2 * bytes_per_value)
    return 1 << max(0, int(min(fits, LARGEST[device.type])).bit_length() - 1)
