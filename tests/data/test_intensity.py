"""Any numbers to 8 bits, against the formula and against numpy's percentiles."""

import numpy as np
import pytest

from medxfer.data.intensity import PERCENTILES, scale_to_uint8, to_uint8


def _reference(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Scale in double precision, without rounding."""
    return (np.clip(values.astype(np.float64), low, high) - low) / (high - low) * 255


def _picture(dtype: str, top: float = 4000.0, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0, top, (40, 50)).astype(dtype)


@pytest.mark.parametrize("dtype", ["uint16", "int16", "int32", "uint32", "float32", "float64"])
def test_the_percentiles_become_black_and_white(dtype):
    picture = _picture(dtype) - (1000 if dtype in ("int16", "int32", "float32") else 0)
    low, high = np.percentile(picture.astype(np.float64), PERCENTILES)
    found = to_uint8(picture)
    assert found.dtype == np.uint8
    assert found.shape == picture.shape
    np.testing.assert_allclose(found, _reference(picture, low, high), atol=0.51)
    assert (found.min(), found.max()) == (0, 255)


def test_a_twelve_bit_film_in_a_sixteen_bit_file_is_not_black():
    film = _picture("uint16", top=4095)
    assert abs(float(to_uint8(film).mean()) - 127.5) < 3
    np.testing.assert_array_equal(to_uint8(film), to_uint8(film * 16))


def test_a_few_hot_and_dead_pixels_do_not_count():
    film = np.tile(np.linspace(1000, 3000, 100, dtype=np.float32), (100, 1))
    spoilt = film.copy()
    spoilt[0, :10], spoilt[1, :10] = 65535, 0
    difference = np.abs(to_uint8(film).astype(int) - to_uint8(spoilt))[2:]
    assert difference.max() <= 2


@pytest.mark.parametrize("value", [0, 7, 65535])
def test_a_picture_of_one_value_is_black(value):
    assert not to_uint8(np.full((5, 6), value, dtype=np.uint16)).any()


def test_a_small_mark_on_an_even_ground_stays_visible():
    film = np.full((50, 50), 100, dtype=np.uint16)
    film[3, 4] = 900  # 1 of 2,500 pixels: beyond both percentiles
    found = to_uint8(film)
    assert found[3, 4] == 255
    assert found.sum() == 255


def test_only_valid_pixels_decide_the_range():
    film = _picture("uint16")
    padded, valid = film.copy(), np.ones(film.shape, dtype=bool)
    padded[:10], valid[:10] = 65535, False
    low, high = np.percentile(film[10:].astype(np.float64), PERCENTILES)
    np.testing.assert_allclose(to_uint8(padded, valid=valid)[10:], _reference(film[10:], low, high), atol=0.51)


def test_numbers_that_are_not_finite_neither_count_nor_warn():
    film = _picture("float32")
    film[0, 0], film[0, 1], film[0, 2] = np.nan, np.inf, -np.inf
    low, high = np.percentile(film[np.isfinite(film)].astype(np.float64), PERCENTILES)
    found = to_uint8(film)
    np.testing.assert_allclose(found[1:], _reference(film[1:], low, high), atol=0.51)
    assert found[0, :3].tolist() == [0, 255, 0]


@pytest.mark.parametrize("film", [np.full((4, 4), np.nan), np.zeros((0, 4))], ids=["nothing finite", "no pixels"])
def test_without_a_number_that_counts_all_is_black(film):
    found = to_uint8(film)
    assert found.shape == film.shape
    assert not found.any()


def test_nothing_valid_is_black():
    film = _picture("uint16")
    assert not to_uint8(film, valid=np.zeros(film.shape, dtype=bool)).any()


def test_the_order_of_grey_values_is_kept():
    film = _picture("uint16", top=65535).ravel()
    found = to_uint8(film[np.argsort(film)].reshape(40, 50)).ravel()
    assert (np.diff(found.astype(int)) >= 0).all()


@pytest.mark.parametrize(("low", "high"), [(0, 255), (-1024, 3071), (0.25, 0.75), (1000, 1001)])
def test_scaling_is_linear_between_the_ends_and_clips_beyond(low, high):
    values = np.linspace(low - (high - low), high + (high - low), 301)
    found = scale_to_uint8(values, low=low, high=high)
    np.testing.assert_allclose(found, _reference(values, low, high), atol=0.51)
    assert not found[values <= low].any()
    assert (found[values >= high] == 255).all()


def test_eight_bits_stay_as_they_are():
    values = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(scale_to_uint8(values, low=0, high=255), values)


@pytest.mark.parametrize(("low", "high"), [(5, 5), (6, 5)])
def test_an_empty_range_is_black(low, high):
    assert not scale_to_uint8(np.arange(10), low=low, high=high).any()


def test_the_input_is_not_changed():
    film = _picture("float32")
    film[0, 0] = np.nan
    before = film.copy()
    to_uint8(film)
    np.testing.assert_array_equal(film, before)
