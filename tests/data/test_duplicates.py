"""Pictures that occur more than once, equal or nearly so."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medxfer.data import duplicates as module
from medxfer.data.decoding import Settings
from medxfer.data.dicom_files import write_dicom
from medxfer.data.duplicates import Duplicates, find_duplicates
from medxfer.data.near_duplicates import Pair
from medxfer.data.store import PixelStore, build_store


def _store(files: list[Path], folder: Path) -> PixelStore:
    settings = Settings(1, 80, "pad")
    return build_store(
        files, folder=folder, settings=settings, on_unreadable="error", workers=1, progress=False
    )[0]  # fmt: skip


@pytest.fixture
def files(tmp_path):
    """A picture as PNG, BMP and DICOM, another one twice, and one alone."""
    rng = np.random.default_rng(0)
    first, second, third = (rng.integers(0, 256, (60, 50), dtype=np.uint8) for _ in range(3))
    first[0, :2] = 0, 255
    Image.fromarray(first).save(tmp_path / "a.png")
    Image.fromarray(second).save(tmp_path / "b.png")
    Image.fromarray(third).save(tmp_path / "c.png")
    Image.fromarray(first).save(tmp_path / "d.bmp")
    (tmp_path / "e.png").write_bytes((tmp_path / "b.png").read_bytes())
    write_dicom(tmp_path / "f.dcm", first.astype(np.uint16), patient_id="p", bits_stored=8, window=(128, 256))
    return [tmp_path / name for name in ("a.png", "b.png", "c.png", "d.bmp", "e.png", "f.dcm")]


def test_equal_pixels_are_found_whatever_the_file(files, tmp_path):
    found = find_duplicates(_store(files, tmp_path / "s"), near=False, folder=tmp_path, workers=1)
    assert [rows.tolist() for rows in found.identical] == [[0, 3, 5], [1, 4]]
    assert found.similar == []


def test_of_equal_pictures_only_one_is_compared_with_others(files, tmp_path, monkeypatch):
    compared = []

    def search(pictures, boxes, *, rows, workers, folder):
        compared.append(rows.tolist())
        return [Pair(0, 2, 0.9, "none")]

    monkeypatch.setattr(module, "find_near_duplicates", search)
    store = _store(files, tmp_path / "s")
    found = find_duplicates(store, near=True, folder=tmp_path, workers=1)
    assert compared == [[0, 1, 2]]
    assert found.similar == [Pair(0, 2, 0.9, "none")]
    assert [rows.tolist() for rows in found.sets()] == [[0, 3, 5], [1, 4], [0, 2]]
    assert find_duplicates(store, near=True, folder=tmp_path, workers=1).similar == found.similar
    assert len(compared) == 1  # the second time it is remembered
    find_duplicates(_store(files[1:], tmp_path / "s"), near=True, folder=tmp_path, workers=1)
    assert len(compared) == 2


def test_nothing_is_no_set():
    assert Duplicates([], []).sets() == []
