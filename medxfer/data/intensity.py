"""Any numbers → 8 bits, by the picture's own range."""

import numpy as np

PERCENTILES = (0.5, 99.5)
"""What is mapped to black and to white: a few hot or dead pixels do not count."""


def to_uint8(pixels: np.ndarray, *, valid: np.ndarray | None = None) -> np.ndarray:
    """Scale a picture to 0..255 by robust percentiles of its own pixels.

    A fixed divisor would turn a 12-bit film in a 16-bit file black.

    Args:
        pixels: (H, W) or (H, W, C), any integer or floating point type; all channels share one range.
        valid: bool of the same shape, what is picture rather than padding; None: all. Numbers that are not finite never
            count.

    Returns:
        uint8 of the same shape. A picture of one value becomes 0.
    """
    values = np.asarray(pixels, dtype=np.float32)
    counted = np.isfinite(values) if valid is None else np.isfinite(values) & valid
    if not counted.any():
        return np.zeros(values.shape, dtype=np.uint8)
    low, high = np.percentile(values[counted], PERCENTILES)
    if high <= low:  # nearly all pixels are one value: what differs is the picture
        low, high = float(values[counted].min()), float(values[counted].max())
    return scale_to_uint8(np.nan_to_num(values, nan=low, posinf=high, neginf=low), low=float(low), high=float(high))


def scale_to_uint8(values: np.ndarray, *, low: float, high: float) -> np.ndarray:
    """Map `low` to 0 and `high` to 255, linearly, and clip the rest; uint8 of the same shape."""
    if high <= low:
        return np.zeros(values.shape, dtype=np.uint8)
    scaled = (values.astype(np.float32) - low) * (255.0 / (high - low))
    return np.clip(np.rint(scaled), 0, 255).astype(np.uint8)
