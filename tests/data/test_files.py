"""Files for prediction: decoded as for training, and a broken one is a row with a reason."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from medxfer.data.files import FileDataset, collate_files, expand_inputs
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


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("fit", ["pad", "crop", "stretch"])
def test_a_picture_is_the_same_as_in_the_store_of_a_training(files, tmp_path, channels, fit):
    settings = {"channels": channels, "size_px": 32, "fit": fit}
    store, _ = build_store(files, folder=tmp_path / "store", on_unreadable="error", num_workers=0, progress=False,
                           **settings)  # fmt: skip
    found = FileDataset(files, **settings)
    assert len(found) == 5
    for row in range(5):
        assert found[row]["row"] == row
        np.testing.assert_array_equal(found[row]["image"], store[row])


def test_a_file_that_cannot_be_read_gives_its_reason(files):
    files[1].write_bytes(b"")
    found = FileDataset([*files, files[0].parent / "no.png"], channels=1, size_px=32, fit="pad")
    assert found[1] == {"row": 1, "reason": "is empty"}
    assert found[5] == {"row": 5, "reason": "No such file or directory"}


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_hold_the_readable_and_name_the_others(files, workers):
    files[1].write_bytes(b"")
    files[2].write_text("no image")
    files[3].write_text("no image")
    dataset = FileDataset(files, channels=3, size_px=32, fit="crop")
    first, second, third = DataLoader(dataset, batch_size=2, collate_fn=collate_files, num_workers=workers)
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
