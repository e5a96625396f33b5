"""What can be told of a picture without knowing what it shows: its size, its greys, its border, its file."""

from pathlib import PurePath

import cv2
import numpy as np
import pandas as pd

from medxfer.data.manifest import Manifest
from medxfer.data.store import PixelStore

COARSE_PX = 16
"""Side of a picture as it is compared in the large."""

SAMPLE = 2_000
"""Pictures that tell what most look like in the large; the others need not be in memory together."""

FLAT = 2.0
"""Standard deviation, of 0..255, below which a row of pixels is of one colour."""


def appearance(manifest: Manifest, pictures: PixelStore) -> pd.DataFrame:
    """Describe every picture.

    Returns:
        One row per image: `width` and `height` in pixels and `aspect ratio` of the original; `mean grey` and `contrast`
        (standard deviation) on 0..255 and `border` (share of the area in margins of one colour) of what is not padding;
        and as texts `file format`, `colour mode`, `modality` and `view` (of DICOM), and `source folder`.
    """
    facts = pictures.facts
    looks = [_look(pictures.content(row)) for row in range(len(pictures))]
    columns = {
        "width": [fact.width for fact in facts],
        "height": [fact.height for fact in facts],
        "aspect ratio": [fact.width / fact.height for fact in facts],
        "mean grey": [mean for mean, _, _ in looks],
        "contrast": [contrast for _, contrast, _ in looks],
        "border": [border for _, _, border in looks],
        "file format": [fact.format for fact in facts],
        "colour mode": [fact.mode for fact in facts],
        "modality": [fact.modality for fact in facts],
        "view": [fact.view for fact in facts],
        "source folder": [str(PurePath(path).parent) for path in manifest.paths],
    }
    return pd.DataFrame(columns)


def _look(content: np.ndarray) -> tuple[float, float, float]:
    grey = content.mean(axis=2, dtype=np.float32)
    height, width = grey.shape
    top, bottom = _border(grey), _border(grey[::-1])
    inner = grey[top : height - bottom]
    left, right = (_border(inner.T), _border(inner.T[::-1])) if len(inner) else (0, 0)
    inside = max(0, height - top - bottom) * max(0, width - left - right)
    return float(grey.mean()), float(grey.std()), 1 - inside / (height * width)


def _border(grey: np.ndarray) -> int:
    """Return how many of the first lines are of one and the same colour."""
    means = grey.mean(axis=1)
    other = (grey.std(axis=1) >= FLAT) | (np.abs(means - means[0]) >= FLAT)
    return int(other.argmax()) if other.any() else len(grey)


def likeness(pictures: PixelStore) -> np.ndarray:
    """Return how like the others each picture is in the large: its correlation with their median, -1..1, (N,).

    Films of one kind have much in common, so that a negative among them stands out by its sign. Of more than 2,000
    pictures, as many spread evenly give the median.
    """
    sample = np.unique(np.linspace(0, len(pictures) - 1, min(SAMPLE, len(pictures))).astype(int))
    median = np.median([_coarse(pictures.content(row)) for row in sample.tolist()], axis=0)
    median /= np.linalg.norm(median) + 1e-6
    return np.array([_coarse(pictures.content(row)) @ median for row in range(len(pictures))])


def _coarse(content: np.ndarray) -> np.ndarray:
    """Return a picture in the large with mean 0 and length 1, float32 (COARSE_PX²,)."""
    grey = content.mean(axis=2, dtype=np.float32)
    coarse = cv2.resize(grey, (COARSE_PX, COARSE_PX), interpolation=cv2.INTER_AREA).ravel()
    coarse -= coarse.mean()
    return coarse / (np.linalg.norm(coarse) + 1e-6)
