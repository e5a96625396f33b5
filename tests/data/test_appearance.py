"""What a picture looks like as numbers, against pictures whose numbers are known."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from medxfer.data.appearance import appearance, likeness
from medxfer.data.decoding import Settings
from medxfer.data.dicom_files import write_dicom
from medxfer.data.manifest import Manifest
from medxfer.data.store import build_store

SIZE = 80


def _looks(folder: Path, *names: str) -> dict[str, list]:
    files = [folder / name for name in names]
    store, _ = build_store(
        files, folder=folder / "store", settings=Settings(1, SIZE, "pad"), on_unreadable="error", workers=1,
        progress=False,
    )  # fmt: skip
    manifest = Manifest(names, tuple(files), np.zeros(len(names), int), ("x", "y"), "binary", None, None)
    return appearance(manifest, store).to_dict("list")


def test_sizes_formats_and_folders_are_those_of_the_files(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    noise = np.random.default_rng(0).integers(0, 256, (40, 80), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "a" / "1.png")
    Image.fromarray(np.stack([noise.T] * 3, axis=2)).save(tmp_path / "a" / "b" / "2.jpg")
    write_dicom(tmp_path / "3.dcm", noise.astype(np.uint16), patient_id="p")
    found = _looks(tmp_path, "a/1.png", "a/b/2.jpg", "3.dcm")
    assert found["width"] == [80, 40, 80]
    assert found["height"] == [40, 80, 40]
    assert found["aspect ratio"] == [2.0, 0.5, 2.0]
    assert found["file format"] == ["PNG", "JPEG", "DICOM"]
    assert found["colour mode"] == ["L", "RGB", "MONOCHROME2 12"]
    assert found["modality"] == ["", "", "CR"]
    assert found["source folder"] == ["a", "a/b", "."]


def test_padding_counts_for_nothing(tmp_path):
    picture = np.full((20, 80), 100, dtype=np.uint8)
    picture[::2, ::2] = picture[1::2, 1::2] = 140
    Image.fromarray(picture).save(tmp_path / "1.png")
    found = _looks(tmp_path, "1.png")
    assert found["mean grey"][0] == pytest.approx(120)
    assert found["contrast"][0] == pytest.approx(20)
    assert found["border"][0] == 0


@pytest.mark.parametrize(("rows", "columns"), [((10, 5), (0, 0)), ((0, 0), (20, 4)), ((8, 8), (8, 8))])
def test_a_border_is_measured_by_its_area(tmp_path, rows, columns):
    noise = np.random.default_rng(1).integers(0, 256, (SIZE, SIZE), dtype=np.uint8)
    picture = np.zeros((SIZE, SIZE), dtype=np.uint8)
    inside = (slice(rows[0], SIZE - rows[1]), slice(columns[0], SIZE - columns[1]))
    picture[inside] = noise[inside]
    Image.fromarray(picture).save(tmp_path / "1.png")
    expected = 1 - (SIZE - sum(rows)) * (SIZE - sum(columns)) / SIZE**2
    assert _looks(tmp_path, "1.png")["border"][0] == pytest.approx(expected)


def test_a_negative_is_unlike_the_others_also_where_a_sample_tells_what_they_look_like(tmp_path, monkeypatch):
    ramp = np.linspace(20, 230, SIZE).astype(np.uint8)[:, np.newaxis].repeat(SIZE, axis=1)
    noise = np.random.default_rng(0).normal(0, 8, (30, SIZE, SIZE))
    files = []
    for number in range(30):
        film = np.clip(ramp + noise[number], 0, 255).astype(np.uint8)
        files.append(tmp_path / f"{number}.png")
        Image.fromarray(255 - film if number == 11 else film).save(files[-1])
    store, _ = build_store(
        files, folder=tmp_path / "store", settings=Settings(1, SIZE, "pad"), on_unreadable="error", workers=1,
        progress=False,
    )  # fmt: skip
    # The correlation with the median of all, computed at once.
    small = [
        cv2.resize(np.array(store[row][..., 0], np.float32), (16, 16), interpolation=cv2.INTER_AREA)
        for row in range(30)
    ]
    flat = np.array([(one - one.mean()).ravel() / np.linalg.norm(one - one.mean()) for one in small])
    expected = [np.corrcoef(one, np.median(flat, axis=0))[0, 1] for one in flat]
    np.testing.assert_allclose(likeness(store), expected, atol=1e-3)
    monkeypatch.setattr("medxfer.data.appearance.SAMPLE", 7)
    found = likeness(store)
    np.testing.assert_allclose(found, expected, atol=0.02)
    assert found[11] < -0.9 < 0.9 < np.delete(found, 11).min()


def test_stripes_are_no_border(tmp_path):
    picture = np.zeros((SIZE, SIZE), dtype=np.uint8)
    picture[:, ::2] = 200
    Image.fromarray(picture).save(tmp_path / "1.png")
    assert _looks(tmp_path, "1.png")["border"][0] == pytest.approx(2 / SIZE)  # the outermost lines


def test_a_picture_of_one_colour_is_all_border(tmp_path):
    Image.new("L", (50, 50), 90).save(tmp_path / "1.png")
    found = _looks(tmp_path, "1.png")
    assert (found["mean grey"][0], found["contrast"][0], found["border"][0]) == (90, 0, 1)
