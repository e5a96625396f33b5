"""Near-duplicates: every change is found and named, other pictures and blank ones are not, whatever the threads."""

import io
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from medxfer.data.fitting import content_box, fit_image
from medxfer.data.near_duplicates import MIN_SIMILARITY, Pair, find_near_duplicates
from medxfer.data.patches import TURNS, turned
from medxfer.data.phantoms import write_lesion_phantoms, write_xray_phantoms
from medxfer.data.reading import read_image

SIZE_PX = 128
ORIGINALS = 24


@pytest.fixture(scope="module")
def xrays(tmp_path_factory) -> list[np.ndarray]:
    """Films of as many patients, (H, W, 1)."""
    table = write_xray_phantoms(
        tmp_path_factory.mktemp("phantoms") / "x", patients=ORIGINALS, size_px=256, max_images_per_patient=1
    )
    return [read_image(table.parent / path, channels=1) for path in pd.read_csv(table).path]


@pytest.fixture(scope="module")
def lesions(tmp_path_factory) -> list[np.ndarray]:
    """Photographs of as many lesions, (H, W, 3)."""
    table = write_lesion_phantoms(tmp_path_factory.mktemp("phantoms") / "l", images=2 * ORIGINALS, size_px=256)
    paths = pd.read_csv(table).drop_duplicates("lesion_id").path[:ORIGINALS]
    return [read_image(table.parent / path, channels=3) for path in paths]


def _fitted(images: list[np.ndarray], *, size_px: int = SIZE_PX, fit: str = "pad") -> tuple[np.ndarray, np.ndarray]:
    boxes = [content_box(*image.shape[:2], size_px=size_px, fit=fit) for image in images]
    pixels = np.stack([fit_image(image, size_px=size_px, fit=fit) for image in images])
    return pixels, np.array([[rows.start, rows.stop, columns.start, columns.stop] for rows, columns in boxes])


def _find(images: list[np.ndarray], *, fit: str = "pad", size_px: int = SIZE_PX, **options: Any) -> list[Pair]:
    return find_near_duplicates(*_fitted(images, fit=fit, size_px=size_px), progress=False, **options)


def _rows(pairs: list[Pair]) -> list[tuple[int, int]]:
    return [(pair.first, pair.second) for pair in pairs]


def _jpeg(image: np.ndarray, quality: int = 30) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(image.squeeze()).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file)).reshape(image.shape)


def _resized(image: np.ndarray, scale: float = 0.5) -> np.ndarray:
    small = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    return small.reshape(*small.shape[:2], image.shape[2])


def _cropped(image: np.ndarray, top: float, bottom: float, left: float, right: float) -> np.ndarray:
    height, width = image.shape[:2]
    return image[round(top * height) : round((1 - bottom) * height), round(left * width) : round((1 - right) * width)]


def _exposed(image: np.ndarray, gain: float, offset: float, gamma: float = 1.0) -> np.ndarray:
    return np.clip(255 * (image / 255.0) ** gamma * gain + offset, 0, 255).astype(np.uint8)


def _many(image: np.ndarray) -> np.ndarray:
    return _jpeg(np.ascontiguousarray(_exposed(_resized(_cropped(image, 0.05, 0, 0.02, 0.05), 0.7), 0.8, 20)[:, ::-1]))


CHANGES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "resized": _resized,
    "recompressed": _jpeg,
    "cropped evenly": lambda image: _cropped(image, 0.05, 0.05, 0.05, 0.05),
    "cropped on one side": lambda image: _cropped(image, 0, 0, 0.05, 0),
    "cropped at a corner": lambda image: _cropped(image, 0.05, 0, 0, 0.05),
    "brighter": lambda image: _exposed(image, 1.0, 30),
    "less contrast": lambda image: _exposed(image, 0.7, 20),
    "gamma": lambda image: _exposed(image, 1.0, 0, 1.5),
    "flipped": lambda image: image[:, ::-1],
    "upside down": lambda image: image[::-1],
    "rotated": lambda image: np.rot90(image),
    "several at once": _many,
}


@pytest.mark.parametrize("modality", ["xrays", "lesions"])
def test_every_change_is_found_and_nothing_else(request, modality):
    originals = request.getfixturevalue(modality)
    changes = [*CHANGES.values()] * 2
    copies = [np.ascontiguousarray(change(image)) for change, image in zip(changes, originals, strict=True)]
    pairs = _find([*originals, *copies])
    missed = [name for i, name in enumerate([*CHANGES] * 2) if (i, ORIGINALS + i) not in _rows(pairs)]
    assert missed == []
    assert len(pairs) == len(copies)


@pytest.mark.parametrize(("fit", "size_px"), [("pad", 75), ("crop", 299), ("stretch", 160)])
def test_copies_are_found_at_every_size_and_fit(xrays, fit, size_px):
    pairs = _find([*xrays[:12], *(_many(image) for image in xrays[:4])], fit=fit, size_px=size_px)
    assert _rows(pairs) == [(i, 12 + i) for i in range(4)]


@pytest.mark.parametrize("turn", range(8))
def test_the_turn_back_is_named(lesions, turn):
    image, copy = lesions[0], turned(lesions[0], turn)
    (pair,) = _find([image, copy, *lesions[1:5]])
    back = turned(copy, TURNS.index(pair.change))
    np.testing.assert_array_equal(back, image)
    assert pair.similarity == pytest.approx(1, abs=0.02)


def test_turns_are_the_eight_symmetries_their_names_say():
    image = np.arange(12).reshape(3, 4)
    expected = {
        "none": image,
        "rotated by 90° counter-clockwise": np.rot90(image),
        "rotated by 180°": image[::-1, ::-1],
        "rotated by 90° clockwise": np.rot90(image, -1),
        "flipped left-right": image[:, ::-1],
        "flipped along the main diagonal": image.T,
        "flipped up-down": image[::-1],
        "flipped along the other diagonal": image[::-1, ::-1].T,
    }
    assert list(expected) == list(TURNS)
    for turn, name in enumerate(TURNS):
        np.testing.assert_array_equal(turned(image, turn), expected[name])


def test_blank_pictures_are_never_duplicates(xrays):
    rng = np.random.default_rng(0)
    grey = [np.full((100, 100, 1), value, dtype=np.uint8) for value in (0, 0, 90, 90, 255)]
    ramp = np.broadcast_to(np.linspace(0, 255, 100).astype(np.uint8)[:, np.newaxis, np.newaxis], (100, 100, 1))
    noisy = [np.full((100, 100, 1), 90, np.uint8) + rng.integers(0, 3, (100, 100, 1), dtype=np.uint8) for _ in "ab"]
    pairs = _find([*grey, ramp, ramp, *noisy, *xrays[:3]])
    assert pairs == []
    assert _find(grey) == []


def test_the_same_marker_on_two_pictures_makes_no_duplicate(xrays):
    marked = [image.copy() for image in xrays[:8]]
    for image in marked:
        image[:40] = 0
        image[:, :20] = 255
        cv2.putText(image, "L 12:30 PORTABLE", (30, 30), cv2.FONT_HERSHEY_SIMPLEX, 0.6, 255, 2)
    assert _find(marked) == []
    assert _rows(_find([*marked, _many(marked[5])])) == [(5, 8)]


def test_two_pictures_are_enough(xrays):
    assert _rows(_find([xrays[0], _many(xrays[0])])) == [(0, 1)]
    assert _find(xrays[:2]) == []
    assert _find(xrays[:1]) == []
    assert find_near_duplicates(np.zeros((0, 75, 75, 1), np.uint8), np.zeros((0, 4), np.int64), progress=False) == []


def test_many_copies_of_one_picture_are_all_linked_by_few_pairs(xrays):
    copies = [xrays[0]] * 100 + [_jpeg(xrays[0], 30 + i // 2) for i in range(100)]
    pairs = _find([*copies, *xrays[1:5]], size_px=96)
    assert {row for pair in _rows(pairs) for row in pair} == set(range(200))
    assert len(pairs) < 200 * 15
    cluster = list(range(200))
    for first, second in _rows(pairs):
        cluster = [cluster[first] if c == cluster[second] else c for c in cluster]
    assert len(set(cluster)) == 1


def test_only_the_rows_asked_for_are_compared(xrays):
    images = [xrays[0], xrays[1], _jpeg(xrays[0]), _jpeg(xrays[1]), xrays[0][:, ::-1]]
    assert _rows(_find(images, rows=np.array([4, 1, 0, 3]))) == [(0, 4), (1, 3)]
    assert _rows(_find(images, rows=np.array([2, 3]))) == []


def test_the_result_is_sorted_and_the_same_each_time(xrays):
    images = [_many(image) for image in xrays[:10]] + xrays
    once = _find(images)
    assert once == _find(images) == _find(images, workers=3)
    assert _rows(once) == sorted(_rows(once)) == [(i, 10 + i) for i in range(10)]
    assert all(MIN_SIMILARITY <= pair.similarity <= 1 for pair in once)


def test_padding_is_not_compared(xrays):
    # Of two narrow pictures most is the same black padding.
    narrow = [np.ascontiguousarray(image[:, 60:130]) for image in xrays[:6]]
    assert _find(narrow) == []
    assert _rows(_find([*narrow, _jpeg(narrow[2])])) == [(2, 6)]
