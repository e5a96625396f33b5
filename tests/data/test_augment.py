"""Augmentations: drawn from the seed alone, within the ranges of the modality."""

import os
import subprocess
import sys

import numpy as np
import pytest

from medxfer.data.augment import RANGES, build_augmentation

SIZE = 64
CHANNELS = {"xray": 1, "dermoscopy": 3}


def _picture(channels: int, seed: int = 0) -> np.ndarray:
    y, x = np.mgrid[0:SIZE, 0:SIZE]
    noise = np.random.default_rng(seed).integers(0, 40, (SIZE, SIZE, channels))
    return (60 + x + y)[..., np.newaxis].astype(np.uint8) + noise.astype(np.uint8)


@pytest.mark.parametrize("strength", [0.3, 1.0, 2.0, 5.0])
@pytest.mark.parametrize(("modality", "channels"), [("xray", 1), ("xray", 3), ("dermoscopy", 3)])
def test_shape_and_type_stay_and_the_picture_given_is_not_changed(modality, strength, channels):
    augment = build_augmentation(modality, strength)
    assert augment is not None
    picture = _picture(channels)
    before = picture.copy()
    for seed in range(10):
        found = augment(picture, seed)
        assert found.shape == picture.shape
        assert found.dtype == np.uint8
    np.testing.assert_array_equal(picture, before)


@pytest.mark.parametrize("modality", sorted(RANGES))
def test_the_result_is_a_pure_function_of_picture_and_seed(modality):
    picture, other = _picture(CHANNELS[modality]), _picture(CHANNELS[modality], seed=1)
    first, second = build_augmentation(modality, 1.0), build_augmentation(modality, 1.0)
    assert first is not None
    assert second is not None
    seeds = [0, 1, 2**31, 2**32 - 1, *range(50, 60)]
    expected = [first(picture, seed) for seed in seeds]
    np.random.seed(7)  # neither numpy's global state, nor what came before, nor another instance matters
    for seed, picture_then in reversed(list(zip(seeds, expected, strict=True))):
        second(other, seed + 1)
        np.testing.assert_array_equal(second(picture, seed), picture_then)


@pytest.mark.parametrize("modality", sorted(RANGES))
def test_seeds_give_different_pictures(modality):
    augment = build_augmentation(modality, 1.0)
    assert augment is not None
    found = {augment(_picture(CHANNELS[modality]), seed).tobytes() for seed in range(30)}
    assert len(found) >= 25


def test_transforms_are_drawn_independently_of_each_other():
    augment = build_augmentation("xray", 1.0)
    assert augment is not None
    unchanged = np.mean([np.array_equal(augment(_picture(1), seed), _picture(1)) for seed in range(600)])
    assert unchanged == pytest.approx(0.1 * 0.2, abs=0.02)  # neither moved (p = 0.9) nor brightened (p = 0.8)


def test_every_second_lesion_is_mirrored():
    augment = build_augmentation("dermoscopy", 1.0)
    assert augment is not None
    picture = np.full((SIZE, SIZE, 3), 80, dtype=np.uint8)
    picture[28:36, 44:52, 0] = 250  # red to the right of the middle,
    picture[44:52, 28:36, 1] = 250  # and green below it
    y, x = np.mgrid[0:SIZE, 0:SIZE] - (SIZE - 1) / 2

    def turns_clockwise(found: np.ndarray) -> bool:
        spots = [np.clip(found[..., c].astype(float) - found[..., 2] - 60, 0, None) for c in (0, 1)]
        (y1, x1), (y2, x2) = (((spot * y).sum() / spot.sum(), (spot * x).sum() / spot.sum()) for spot in spots)
        return bool(x1 * y2 - y1 * x2 > 0)

    assert turns_clockwise(picture)
    assert not turns_clockwise(picture[:, ::-1])
    assert turns_clockwise(picture[::-1, ::-1])
    share = np.mean([turns_clockwise(augment(picture, seed)) for seed in range(300)])
    assert share == pytest.approx(0.5, abs=0.12)


@pytest.mark.parametrize("modality", sorted(RANGES))
def test_strength_0_is_no_augmentation(modality):
    assert build_augmentation(modality, 0) is None


def test_a_larger_strength_changes_more():
    picture = _picture(1)

    def change(strength: float) -> float:
        augment = build_augmentation("xray", strength)
        assert augment is not None
        return float(np.mean([np.abs(augment(picture, seed).astype(int) - picture).mean() for seed in range(40)]))

    assert change(0.3) < change(1.0) < change(3.0)


def _corner(picture: np.ndarray) -> tuple[bool, bool]:
    """Return whether the brightest quarter is below, and whether it is right of the middle."""
    half = SIZE // 2
    quarters = picture.reshape(2, half, 2, half, -1).mean(axis=(1, 3, 4))
    below, right = np.unravel_index(quarters.argmax(), (2, 2))
    return bool(below), bool(right)


def test_an_x_ray_is_never_mirrored_nor_upside_down():
    augment = build_augmentation("xray", 1.0)
    assert augment is not None
    picture = np.full((SIZE, SIZE, 1), 60, dtype=np.uint8)
    picture[6:26, 38:58] = 220  # above and right
    assert {_corner(augment(picture, seed)) for seed in range(200)} == {(False, True)}


def test_a_lesion_is_turned_all_ways():
    augment = build_augmentation("dermoscopy", 1.0)
    assert augment is not None
    picture = np.full((SIZE, SIZE, 3), 60, dtype=np.uint8)
    picture[6:26, 38:58] = 220
    corners = [_corner(augment(picture, seed)) for seed in range(200)]
    assert all(corners.count((below, right)) > 25 for below in (False, True) for right in (False, True))


def test_an_x_ray_is_moved_by_no_more_than_the_ranges_say():
    augment = build_augmentation("xray", 1.0)
    assert augment is not None
    picture = np.zeros((SIZE, SIZE, 1), dtype=np.uint8)
    picture[10:15, 10:15] = 255  # centre at (12, 12), that is 19.5 from the middle in both directions
    y, x = np.mgrid[0:SIZE, 0:SIZE]
    for seed in range(100):
        found = augment(picture, seed)[..., 0].astype(float)
        found[found < 128] = 0  # without a change of brightness
        centre = np.array([(found * y).sum(), (found * x).sum()]) / found.sum()
        # 7 degrees, 8 % of scale and 4 % of shift on a radius of 19.5 √2
        furthest = 19.5 * np.sqrt(2) * (np.deg2rad(7) + 0.08) + 0.04 * SIZE * np.sqrt(2) + 1
        assert np.hypot(*(centre - 12)) <= furthest


def test_colour_stays_near():
    augment = build_augmentation("dermoscopy", 1.0)
    assert augment is not None
    skin = np.tile(np.array([210, 170, 150], dtype=np.uint8), (SIZE, SIZE, 1))
    for seed in range(50):
        red, green, blue = augment(skin, seed).reshape(-1, 3).mean(axis=0)
        assert red > green > blue
        assert 150 < red <= 255


def test_importing_asks_the_network_nothing():
    code = (
        "import socket\n"
        "def deny(*a, **k): raise SystemExit('a socket was opened')\n"
        "socket.socket.connect = socket.getaddrinfo = socket.create_connection = deny\n"
        "import medxfer.data.augment, os\n"
        "assert os.environ['NO_ALBUMENTATIONS_UPDATE'] == '1'\n"
    )
    environment = {key: value for key, value in os.environ.items() if key != "NO_ALBUMENTATIONS_UPDATE"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, capture_output=True)
