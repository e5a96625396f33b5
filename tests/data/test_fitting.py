"""Squares from pictures of any shape, against Pillow's box filter and plain geometry."""

import numpy as np
import pytest
from PIL import Image

from medxfer.data.fitting import content_box, fit_image

SHAPES = [(60, 40), (40, 60), (50, 50), (1, 90), (90, 1), (7, 120), (33, 31), (128, 127)]


def _gradient(height: int, width: int, channels: int = 1) -> np.ndarray:
    """Return a smooth picture without black."""
    y, x = np.mgrid[0:height, 0:width]
    grey = 60 + 90 * y / max(1, height - 1) + 90 * x / max(1, width - 1)
    return np.stack([grey - 10 * c for c in range(channels)], axis=-1).astype(np.uint8)


@pytest.mark.parametrize("fit", ["pad", "crop", "stretch"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size_px", [1, 32, 75])
def test_the_result_is_a_square_of_bytes(shape, channels, size_px, fit):
    found = fit_image(_gradient(*shape, channels), size_px=size_px, fit=fit)
    assert found.shape == (size_px, size_px, channels)
    assert found.dtype == np.uint8
    assert found.flags.c_contiguous


@pytest.mark.parametrize("fit", ["pad", "crop", "stretch"])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_square_of_the_right_size_is_unchanged(channels, fit):
    image = np.random.default_rng(0).integers(0, 256, (48, 48, channels), dtype=np.uint8)
    np.testing.assert_array_equal(fit_image(image, size_px=48, fit=fit), image)


@pytest.mark.parametrize("shape", SHAPES)
def test_padding_is_black_and_the_picture_fills_its_box(shape):
    found = fit_image(_gradient(*shape), size_px=32, fit="pad")
    rows, columns = content_box(*shape, size_px=32, fit="pad")
    inside = np.zeros((32, 32), dtype=bool)
    inside[rows, columns] = True
    assert (found[inside] >= 50).all()
    assert not found[~inside].any()


@pytest.mark.parametrize("shape", SHAPES)
def test_the_box_has_the_aspect_of_the_picture_and_is_in_the_middle(shape):
    size = 40
    rows, columns = content_box(*shape, size_px=size, fit="pad")
    height, width = rows.stop - rows.start, columns.stop - columns.start
    assert max(height, width) == size
    assert abs(height - max(1, size * shape[0] / max(shape))) <= 0.5
    assert abs(width - max(1, size * shape[1] / max(shape))) <= 0.5
    assert abs(rows.start - (size - rows.stop)) <= 1
    assert abs(columns.start - (size - columns.stop)) <= 1


@pytest.mark.parametrize("fit", ["crop", "stretch"])
@pytest.mark.parametrize("shape", SHAPES)
def test_cropped_and_stretched_pictures_fill_the_square(shape, fit):
    assert content_box(*shape, size_px=24, fit=fit) == (slice(0, 24), slice(0, 24))
    assert (fit_image(_gradient(*shape), size_px=24, fit=fit) >= 50).all()


@pytest.mark.parametrize("factor", [2, 3, 4])
@pytest.mark.parametrize("fit", ["pad", "stretch", "crop"])
def test_shrinking_by_a_whole_factor_is_the_mean_of_each_cell(factor, fit):
    image = np.random.default_rng(1).integers(0, 256, (24 * factor, 24 * factor, 3), dtype=np.uint8)
    means = image.reshape(24, factor, 24, factor, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(fit_image(image, size_px=24, fit=fit), means, atol=0.51)


@pytest.mark.parametrize("shape", [(100, 70), (128, 128), (90, 120)])
def test_shrinking_by_any_factor_agrees_with_the_box_filter_of_pillow(shape):
    image = np.random.default_rng(2).integers(0, 256, (*shape, 3), dtype=np.uint8)
    expected = np.asarray(Image.fromarray(image).resize((32, 32), Image.Resampling.BOX, reducing_gap=None))
    found = fit_image(image, size_px=32, fit="stretch").astype(int)
    assert np.abs(found - expected).mean() < 8  # Pillow's box has hard edges, the area filter has not
    assert abs(found.mean() - image.mean()) < 0.6


def test_enlarging_is_bilinear():
    image = _gradient(16, 16, 3)
    expected = np.asarray(Image.fromarray(image).resize((64, 64), Image.Resampling.BILINEAR))
    np.testing.assert_allclose(fit_image(image, size_px=64, fit="pad"), expected, atol=1)


@pytest.mark.parametrize(("shape", "kept"), [((20, 40), (slice(0, 20), slice(10, 30))), ((40, 20), (slice(10, 30),))])
def test_crop_keeps_the_middle(shape, kept):
    image = np.random.default_rng(3).integers(0, 256, (*shape, 1), dtype=np.uint8)
    np.testing.assert_array_equal(fit_image(image, size_px=20, fit="crop"), image[kept])


def test_pad_cuts_nothing_away():
    image = np.full((120, 60, 1), 100, dtype=np.uint8)
    image[:4], image[-4:], image[:, :4], image[:, -4:] = 255, 255, 255, 255
    found = fit_image(image, size_px=60, fit="pad")[..., 0]
    rows, columns = content_box(120, 60, size_px=60, fit="pad")
    content = found[rows, columns]
    for edge in (content[0], content[-1], content[:, 0], content[:, -1]):
        assert (edge == 255).all()


def test_up_and_left_stay_up_and_left():
    image = np.zeros((60, 90, 1), dtype=np.uint8)
    image[:30, :45] = 255
    for fit in ("pad", "crop", "stretch"):
        rows, columns = content_box(60, 90, size_px=30, fit=fit)
        content = fit_image(image, size_px=30, fit=fit)[rows, columns, 0]
        height, width = content.shape
        assert content[: height // 2 - 1, : width // 2 - 1].min() == 255
        assert content[height // 2 + 1 :].max() == 0
        assert content[:, width // 2 + 1 :].max() == 0


def test_a_slender_picture_is_cropped_before_it_is_enlarged():
    """Enlarged first, it would take gigabytes."""
    picture = np.random.default_rng(0).integers(0, 256, (200_000, 2, 1), dtype=np.uint8)
    middle = picture[99_999:100_001]
    np.testing.assert_array_equal(
        fit_image(picture, size_px=64, fit="crop"), fit_image(middle, size_px=64, fit="stretch")
    )
