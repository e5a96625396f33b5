"""Patches of pictures and what of them survives re-exposure, for telling copies; all grey, float32."""

import cv2
import numpy as np

PATCH_PX, SKETCH_PX = 96, 24
"""Sides of what is registered and of what is searched."""

MIN_TEXTURE = 0.05
"""Share of a picture that must have structure; with less it is blank, and never compared."""

TURNS = (
    "none",
    "rotated by 90° counter-clockwise",
    "rotated by 180°",
    "rotated by 90° clockwise",
    "flipped left-right",
    "flipped along the main diagonal",
    "flipped up-down",
    "flipped along the other diagonal",
)
"""The symmetries of the square: turn t mirrors left-right if t > 3, then rotates t % 4 quarters counter-clockwise."""


def turned(image: np.ndarray, turn: int) -> np.ndarray:
    """Return a picture (H, W, ...) mirrored and rotated as `TURNS[turn]` says.

    >>> turned(np.array([[1, 2], [3, 4]]), TURNS.index("flipped along the main diagonal")).tolist()
    [[1, 3], [2, 4]]
    """
    return np.ascontiguousarray(np.rot90(image[:, ::-1] if turn > 3 else image, turn % 4))


def patch_of(picture: np.ndarray, box: np.ndarray) -> np.ndarray:
    """Return the content of a picture stretched to a square, float32 (PATCH_PX, PATCH_PX) in 0..255."""
    top, bottom, left, right = box
    content = picture[top:bottom, left:right].astype(np.float32)
    grey = cv2.cvtColor(content, cv2.COLOR_RGB2GRAY) if content.shape[2] == 3 else content[..., 0]
    mode = cv2.INTER_AREA if max(grey.shape) > PATCH_PX else cv2.INTER_LINEAR
    return cv2.resize(grey, (PATCH_PX, PATCH_PX), interpolation=mode)


def _band(grey: np.ndarray, *, fine: float, coarse: float, window: float) -> tuple[np.ndarray, np.ndarray]:
    """Structure between two scales in pixels, and its local amplitude."""
    band = cv2.GaussianBlur(grey, (0, 0), fine) - cv2.GaussianBlur(grey, (0, 0), coarse)
    return band, np.sqrt(cv2.GaussianBlur(band * band, (0, 0), window))


def contrast(grey: np.ndarray, *, fine: float, coarse: float, window: float) -> np.ndarray:
    """Return a band over its local amplitude, float32 (S, S): exposure drops out, and no edge outweighs the rest."""
    band, amplitude = _band(grey, fine=fine, coarse=coarse, window=window)
    # Not below one grey level, which is rounding. The amplitude is smooth, so few of its values give the median.
    return band / (amplitude + max(1.0, 0.3 * float(np.median(amplitude[::4, ::4]))))


def fine_contrast(grey: np.ndarray) -> np.ndarray:
    """Return the contrast of the finest structure that survives compression, float32 (S, S)."""
    return contrast(grey, fine=1.0, coarse=2.0, window=5.0)


def has_texture(grey: np.ndarray) -> bool:
    """Return whether a patch shows anything; if not, it would be like any other."""
    _, amplitude = _band(grey, fine=1.0, coarse=2.0, window=5.0)
    return bool((amplitude > 0.5).mean() >= MIN_TEXTURE)


def half(image: np.ndarray) -> np.ndarray:
    """Return a patch (S, S) at half its size, each pixel the mean of four."""
    return cv2.resize(image, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)


def sketch_of(grey: np.ndarray) -> np.ndarray:
    """Return the coarse local contrast of a patch, float32 (SKETCH_PX, SKETCH_PX)."""
    return half(contrast(half(grey), fine=1.0, coarse=5.0, window=7.0))


def warped(image: np.ndarray, matrix: np.ndarray, border: int = cv2.BORDER_REFLECT) -> np.ndarray:
    """Return a patch (S, S) whose pixel p is the one at matrix · (p, 1) of the given one; `matrix` is (2, 3)."""
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(image, matrix, image.shape[::-1], flags=flags, borderMode=border)


def cropped(grey: np.ndarray, sides: np.ndarray) -> np.ndarray:
    """Return a patch (S, S) with shares of top, bottom, left and right cut away and the rest enlarged."""
    top, bottom, left, right = sides
    size = len(grey)
    return warped(grey, np.array([[1 - left - right, 0, left * size], [0, 1 - top - bottom, top * size]]))
