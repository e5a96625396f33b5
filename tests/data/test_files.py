"""Files for prediction: decoded as for training, and a broken one is a row with a reason."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from medxfer.data import decoding
from medxfer.data.decoding import Decoded, Settings, decode_file
from medxfer.data.files import FileStream, collate_files, expand_inputs
from medxfer.data.fitting import fit_image
from medxfer.data.reading import read_image
from medxfer.data.store import build_store
from medxfer.errors import DataError


@pytest.fixture
def files(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    rng = np.random.default_rng(0)
    paths = [folder / f"{i}.png" for i in range(5)]
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (*rng.integers(20, 60, size=2), 3), dtype=np.uint8)).save(path)
    return paths


def _settings(channels: int = 1, fit: str = "pad") -> Settings:
    return Settings(channels=channels, size_px=32, fit=fit)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("fit", ["pad", "crop", "stretch"])
def test_a_picture_is_the_same_as_in_the_store_of_a_training(files, tmp_path, channels, fit):
    settings = _settings(channels, fit)
    store, _ = build_store(
        files, folder=tmp_path / "store", settings=settings, on_unreadable="error", workers=1, progress=False
    )
    found = list(FileStream(files, settings, workers=1))
    assert [item["row"] for item in found] == list(range(5))
    for item in found:
        np.testing.assert_array_equal(item["image"], store[item["row"]])


def test_a_file_that_cannot_be_read_gives_its_reason(files):
    files[1].write_bytes(b"")
    found = list(FileStream([*files, files[0].parent / "no.png"], _settings(), workers=1))
    assert found[1] == {"row": 1, "reason": "is empty"}
    assert found[5] == {"row": 5, "reason": "No such file or directory"}
    assert ["image" in item for item in found] == [True, False, True, True, True, False]


def _aborting(file: Path, settings: Settings) -> Decoded:
    """Stand for a decoder that aborts."""
    if file.name == "2.png":
        os.abort()
    return decode_file(file, settings)


def test_a_file_that_ends_its_decoder_is_a_row_with_a_reason(files, monkeypatch):
    monkeypatch.setattr(decoding, "decode_file", _aborting)
    found = list(FileStream(files, _settings(), workers=1))
    assert [item["row"] for item in found if "image" in item] == [0, 1, 3, 4]
    assert found[2]["reason"].startswith("is damaged: its decoder crashed")


def test_files_are_decoded_again_each_time_they_are_asked_for(files):
    stream = FileStream(files, _settings(), workers=1)
    first = list(stream)
    files[0].unlink()
    second = list(stream)
    assert "image" in first[0]
    assert "reason" in second[0]
    np.testing.assert_array_equal(first[1]["image"], second[1]["image"])


@pytest.mark.parametrize("workers", [1, 2])
def test_batches_hold_the_readable_and_name_the_others(files, workers):
    files[1].write_bytes(b"")
    files[2].write_text("no image")
    files[3].write_text("no image")
    stream = FileStream(files, _settings(3, "crop"), workers=workers)
    first, second, third = DataLoader(stream, batch_size=2, collate_fn=collate_files)
    assert first["row"].tolist() == [0]
    assert first["row"].dtype == torch.int64
    assert first["failures"] == [(1, "is empty")]
    assert first["image"].shape == (1, 3, 32, 32)
    assert first["image"].dtype == torch.uint8
    expected = fit_image(read_image(files[0], channels=3), size_px=32, fit="crop")
    np.testing.assert_array_equal(first["image"][0].permute(1, 2, 0).numpy(), expected)
    assert second["row"].tolist() == []
    assert "image" not in second
    assert [row for row, _ in second["failures"]] == [2, 3]
    assert third["row"].tolist() == [4]
    assert third["failures"] == []


def test_folders_become_the_images_below_them_and_files_stay(files, tmp_path):
    (tmp_path / "images" / "deep").mkdir()
    (tmp_path / "images" / "deep" / "x.jpg").write_bytes(b"not opened")
    (tmp_path / "images" / "notes.txt").write_text("no image")
    missing = tmp_path / "no.png"
    found = expand_inputs([missing, tmp_path / "images", files[2]])
    assert found == [missing, *files, tmp_path / "images" / "deep" / "x.jpg", files[2]]


def test_nothing_becomes_nothing():
    assert expand_inputs([]) == []


def test_a_folder_without_images_is_refused_by_name(tmp_path):
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(DataError, match=rf"the folder {tmp_path} holds no image .*PNG, JPEG"):
        expand_inputs([tmp_path])
