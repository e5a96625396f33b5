"""How a picture of any shape becomes square."""

from typing import Literal

import cv2
import numpy as np

Fit = Literal["pad", "crop", "stretch"]


def fit_image(image: np.ndarray, *, size_px: int, fit: str) -> np.ndarray:
    """Resize a picture to a square.

    Args:
        image: uint8 (H, W, C) in 0..255.
        size_px: side of the result.
        fit: pad (the longer side fits, the rest is black; nothing is cut away), crop (the shorter side fits, the
            middle is kept) or stretch (the aspect ratio changes).

    Returns:
        uint8 (size_px, size_px, C) in 0..255.
    """
    if fit == "crop":
        image, fit = _middle_square(image), "stretch"
    height, width, channels = image.shape
    target_height, target_width = _resized(height, width, size_px=size_px, fit=fit)
    shrinks = target_height < height or target_width < width
    resized = cv2.resize(
        image, (target_width, target_height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    ).reshape(target_height, target_width, channels)
    square = np.zeros((size_px, size_px, channels), dtype=np.uint8)
    square[content_box(height, width, size_px=size_px, fit=fit)] = resized
    return square


def content_box(height: int, width: int, *, size_px: int, fit: str) -> tuple[slice, slice]:
    """Return the rows and columns of a fitted picture that hold picture rather than padding.

    >>> content_box(100, 50, size_px=10, fit="pad")
    (slice(0, 10, None), slice(2, 7, None))
    """
    if fit != "pad":
        return slice(0, size_px), slice(0, size_px)
    target_height, target_width = _resized(height, width, size_px=size_px, fit=fit)
    top, left = (size_px - target_height) // 2, (size_px - target_width) // 2
    return slice(top, top + target_height), slice(left, left + target_width)


def _middle_square(image: np.ndarray) -> np.ndarray:
    side = min(image.shape[:2])
    top, left = (image.shape[0] - side) // 2, (image.shape[1] - side) // 2
    return np.ascontiguousarray(image[top : top + side, left : left + side])


def _resized(height: int, width: int, *, size_px: int, fit: str) -> tuple[int, int]:
    if fit == "stretch":
        return size_px, size_px
    scale = size_px / max(height, width)
    return max(1, round(height * scale)), max(1, round(width * scale))
