"""albumentations pipelines by modality, drawn from a given seed. Nothing else knows albumentations."""

import os
import random
import warnings
from collections.abc import Callable

os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # it asks the network at import otherwise

import albumentations as A
import cv2
import numpy as np

Augmentation = Callable[[np.ndarray, int], np.ndarray]


def _xray(strength: float) -> list[A.BasicTransform]:
    # No flips: a mirrored chest has its heart on the wrong side, and no film is upside down.
    shift = 0.04 * strength
    return [
        A.Affine(
            rotate=(-7 * strength, 7 * strength),
            scale=(1 - 0.08 * min(strength, 3), 1 + 0.08 * strength),
            translate_percent={"x": (-shift, shift), "y": (-shift, shift)},
            interpolation=cv2.INTER_LINEAR,
            p=0.9,
        ),
        A.RandomBrightnessContrast(
            brightness_limit=min(0.9, 0.12 * strength), contrast_limit=min(0.9, 0.15 * strength), p=0.8
        ),
    ]


def _dermoscopy(strength: float) -> list[A.BasicTransform]:
    # A lesion has no up, down, left or right.
    return [
        A.HorizontalFlip(p=0.5),
        A.VerticalFlip(p=0.5),
        A.Affine(
            rotate=(-180, 180),
            scale=(1 - 0.1 * min(strength, 3), 1 + 0.2 * strength),
            interpolation=cv2.INTER_LINEAR,
            border_mode=cv2.BORDER_REFLECT_101,
            p=1.0,
        ),
        A.ColorJitter(
            brightness=min(0.9, 0.12 * strength),
            contrast=min(0.9, 0.12 * strength),
            saturation=min(0.9, 0.12 * strength),
            hue=min(0.5, 0.015 * strength),
            p=0.8,
        ),
    ]


PIPELINES: dict[str, Callable[[float], list[A.BasicTransform]]] = {"xray": _xray, "dermoscopy": _dermoscopy}


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
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a range that albumentations silently corrects would be a lie
        pipeline = A.Compose([*PIPELINES[modality](strength)])

    def augment(image: np.ndarray, seed: int) -> np.ndarray:
        # One stream for all transforms: `set_random_seed` would give each its own copy, and all the same numbers.
        pipeline.set_random_state(np.random.default_rng(seed), random.Random(seed))
        return pipeline(image=image)["image"].reshape(image.shape)

    return augment
