"""Ranges of augmentation by modality, and their albumentations pipelines, drawn from a given seed.

Nothing else knows albumentations; `batch_augment.py` does the same to whole batches on a device.
"""

import os
import random
import warnings
from collections.abc import Callable
from dataclasses import dataclass

os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # it asks the network at import otherwise

import albumentations as A
import cv2
import numpy as np

Augmentation = Callable[[np.ndarray, int], np.ndarray]


@dataclass(frozen=True)
class Movement:
    """How pictures are mirrored and then moved; numbers are drawn uniformly between their limits.

    Attributes:
        p: of the affine transform.
        rotation_deg: anticlockwise.
        scale: factor, one of its own for each axis.
        shift: of each axis, in sides of the picture; cut towards 0 to whole pixels.
        mirror_p: of each of the two mirrorings, left-right and up-down.
        reflect: whether a picture goes on mirrored beyond its border, whose pixels are not repeated; otherwise black.
    """

    p: float
    rotation_deg: tuple[float, float]
    scale: tuple[float, float]
    shift: tuple[float, float] = (0.0, 0.0)
    mirror_p: float = 0.0
    reflect: bool = False


@dataclass(frozen=True)
class Exposure:
    """How grey levels x change: x (1 + c) + 255 b.

    Attributes:
        p: that they do.
        brightness: b is drawn uniformly from ± this.
        contrast: c is drawn uniformly from ± this.
    """

    p: float
    brightness: float
    contrast: float


@dataclass(frozen=True)
class Colour:
    """How colours change, in four steps of random order; factors are drawn uniformly from 1 ± the limit.

    Attributes:
        p: that they do.
        brightness: factor of the grey levels.
        contrast: factor of the distance from the picture's mean grey level.
        saturation: factor of the distance from the pixel's own grey level.
        hue: turns of the colour wheel, drawn uniformly from ± this.
    """

    p: float
    brightness: float
    contrast: float
    saturation: float
    hue: float


def _xray(strength: float) -> tuple[Movement, Exposure]:
    # No flips: a mirrored chest has its heart on the wrong side, and no film is upside down.
    shift = 0.04 * strength
    movement = Movement(
        p=0.9,
        rotation_deg=(-7 * strength, 7 * strength),
        scale=(1 - 0.08 * min(strength, 3), 1 + 0.08 * strength),
        shift=(-shift, shift),
    )
    return movement, Exposure(p=0.8, brightness=min(0.9, 0.12 * strength), contrast=min(0.9, 0.15 * strength))


def _dermoscopy(strength: float) -> tuple[Movement, Colour]:
    # A lesion has no up, down, left or right.
    movement = Movement(
        p=1.0,
        rotation_deg=(-180, 180),
        scale=(1 - 0.1 * min(strength, 3), 1 + 0.2 * strength),
        mirror_p=0.5,
        reflect=True,
    )
    mild = min(0.9, 0.12 * strength)
    return movement, Colour(p=0.8, brightness=mild, contrast=mild, saturation=mild, hue=min(0.5, 0.015 * strength))


RANGES: dict[str, Callable[[float], tuple[Movement, Exposure | Colour]]] = {"xray": _xray, "dermoscopy": _dermoscopy}
"""Modality → ranges at a strength, which is a factor on all of them."""


def build_augmentation(modality: str, strength: float) -> Augmentation | None:
    """Build the augmentation of a modality.

    Args:
        modality: xray (small rotations, scale, shift, brightness and contrast) or dermoscopy (full rotations, flips,
            scale, mild colour).
        strength: factor on every range; 0: none.

    Returns:
        A function of a uint8 (H, W, C) picture in 0..255 and a seed that returns a picture of the same shape and type,
        always the same one for the same seed; or None.
    """
    if strength == 0:
        return None
    pipeline = build_pipeline(modality, strength)

    def augment(image: np.ndarray, seed: int) -> np.ndarray:
        # One stream for all transforms: `set_random_seed` would give each its own copy, and all the same numbers.
        pipeline.set_random_state(np.random.default_rng(seed), random.Random(seed))
        return pipeline(image=image)["image"].reshape(image.shape)

    return augment


def build_pipeline(modality: str, strength: float) -> A.Compose:
    """Return albumentations' transforms of a modality, in order; see `build_augmentation`."""
    movement, intensity = RANGES[modality](strength)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a range that albumentations silently corrects would be a lie
        return A.Compose(
            [*_move(movement), _expose(intensity) if isinstance(intensity, Exposure) else _tint(intensity)]
        )


def _move(ranges: Movement) -> list[A.BasicTransform]:
    mirrorings = [A.HorizontalFlip(p=ranges.mirror_p), A.VerticalFlip(p=ranges.mirror_p)] if ranges.mirror_p else []
    affine = A.Affine(
        rotate=ranges.rotation_deg,
        scale=ranges.scale,
        translate_percent={"x": ranges.shift, "y": ranges.shift} if any(ranges.shift) else None,
        interpolation=cv2.INTER_LINEAR,
        border_mode=cv2.BORDER_REFLECT_101 if ranges.reflect else cv2.BORDER_CONSTANT,
        p=ranges.p,
    )
    return [*mirrorings, affine]


def _expose(ranges: Exposure) -> A.BasicTransform:
    return A.RandomBrightnessContrast(
        brightness_limit=ranges.brightness, contrast_limit=ranges.contrast, brightness_by_max=True, p=ranges.p
    )


def _tint(ranges: Colour) -> A.BasicTransform:
    return A.ColorJitter(
        brightness=ranges.brightness,
        contrast=ranges.contrast,
        saturation=ranges.saturation,
        hue=ranges.hue,
        p=ranges.p,
    )
