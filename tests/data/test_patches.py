"""What of a picture survives a change, against the change itself."""

import cv2
import numpy as np
import pytest

from medxfer.data.patches import (
    PATCH_PX,
    SKETCH_PX,
    TURNS,
    contrast,
    cropped,
    fine_contrast,
    half,
    has_texture,
    patch_of,
    sketch_of,
    turned,
    warped,
)

BAND = {"fine": 1.0, "coarse": 4.0, "window": 6.0}


def texture(seed: int, size: int = PATCH_PX) -> np.ndarray:
    rng = np.random.default_rng(seed)
    layers = [cv2.resize(rng.normal(size=(n, n)), (size, size), interpolation=cv2.INTER_CUBIC) for n in (6, 12, 24, 48)]
    return np.clip(128 + 25 * sum(layers), 5, 250).astype(np.float32)


def test_the_turns_are_the_eight_symmetries_and_their_names():
    image = np.arange(9).reshape(3, 3)
    found = [turned(image, turn) for turn in range(8)]
    assert len({one.tobytes() for one in found}) == 8
    assert np.array_equal(found[TURNS.index("none")], image)
    assert np.array_equal(found[TURNS.index("flipped left-right")], np.fliplr(image))
    assert np.array_equal(found[TURNS.index("flipped up-down")], np.flipud(image))
    assert np.array_equal(found[TURNS.index("rotated by 90° counter-clockwise")], np.rot90(image))
    assert np.array_equal(found[TURNS.index("rotated by 90° clockwise")], np.rot90(image, -1))
    assert np.array_equal(found[TURNS.index("rotated by 180°")], np.rot90(image, 2))
    assert np.array_equal(found[TURNS.index("flipped along the main diagonal")], image.T)
    assert np.array_equal(found[TURNS.index("flipped along the other diagonal")], np.rot90(image, 2).T)


@pytest.mark.parametrize("channels", [1, 3])
def test_padding_and_shape_do_not_count_for_a_patch(channels):
    content = np.repeat(texture(0, 120)[:60].astype(np.uint8)[..., np.newaxis], channels, axis=2)
    picture = np.zeros((120, 120, channels), dtype=np.uint8)
    picture[30:90] = content
    patch = patch_of(picture, np.array([30, 90, 0, 120]))
    assert patch.shape == (PATCH_PX, PATCH_PX)
    expected = cv2.resize(content[..., 0].astype(np.float32), (PATCH_PX, PATCH_PX), interpolation=cv2.INTER_AREA)
    assert np.abs(patch - expected).max() < 1.5  # weights of the three colours round


@pytest.mark.parametrize(("gain", "offset"), [(0.5, 0), (1.5, -20), (1.0, 60)])
def test_exposure_drops_out_of_contrast_and_sketch(gain, offset):
    plain, exposed = texture(1), texture(1) * gain + offset
    for measure in (lambda grey: contrast(grey, **BAND), fine_contrast, sketch_of):
        assert np.corrcoef(measure(plain).ravel(), measure(exposed).ravel())[0, 1] > 0.999
        assert np.corrcoef(measure(plain).ravel(), measure(texture(2)).ravel())[0, 1] < 0.3


def test_a_sketch_has_its_size():
    assert sketch_of(texture(3)).shape == (SKETCH_PX, SKETCH_PX)
    assert np.allclose(half(np.array([[1, 2], [3, 6]], dtype=np.float32)), [[3.0]])


def test_what_is_blank_has_no_texture():
    assert has_texture(texture(4))
    assert not has_texture(np.full((PATCH_PX, PATCH_PX), 90, dtype=np.float32))
    lettered = np.full((PATCH_PX, PATCH_PX), 90, dtype=np.float32)
    lettered[:3, :3] = 250
    assert not has_texture(lettered)


def test_a_crop_is_the_part_enlarged():
    grey = texture(5)
    found = cropped(grey, np.array([0.05, 0.0, 0.1, 0.02]))
    part = grey[round(0.05 * PATCH_PX) :, round(0.1 * PATCH_PX) : PATCH_PX - round(0.02 * PATCH_PX)]
    expected = cv2.resize(part, (PATCH_PX, PATCH_PX), interpolation=cv2.INTER_LINEAR)
    assert np.corrcoef(found[4:-4, 4:-4].ravel(), expected[4:-4, 4:-4].ravel())[0, 1] > 0.97


def test_a_warp_says_where_each_pixel_comes_from():
    grey = texture(6)
    shift = np.array([[1.0, 0.0, 3.0], [0.0, 1.0, 5.0]])
    np.testing.assert_allclose(warped(grey, shift)[:-5, :-3], grey[5:, 3:], atol=1e-3)
