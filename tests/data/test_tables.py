"""Tables and folders as texts; what a manifest makes of them is tested in test_manifest.py."""

import os
from pathlib import Path

import pytest

from medxfer.data.tables import read_csv, read_folder
from medxfer.errors import DataError


def test_excels_line_that_names_the_separator(tmp_path):
    file = tmp_path / "labels.csv"
    file.write_text("sep=;\npath;label\na.png;x\n\nb.png;y\n")
    table, places = read_csv(file)
    assert table.to_dict("list") == {"path": ["a.png", "b.png"], "label": ["x", "y"]}
    assert places == ["line 3", "line 5"]
    file.write_text("sep=;\n")
    with pytest.raises(DataError, match="is empty"):
        read_csv(file)


def _images(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"never opened")


def _splits_in_folders(root: Path) -> Path:
    _images(*(root / f"{split}/{name}/1.png" for split in ("train", "val", "test") for name in ("x", "y")))
    return root


def test_other_folders_beside_the_splits_do_not_make_classes_of_them(tmp_path):
    folder = _splits_in_folders(tmp_path)
    (folder / "figures").mkdir()
    _images(folder / "__MACOSX/train/x/._1.png")
    table, _ = read_folder(folder)
    assert set(table["label"]) == {"x", "y"}
    assert set(table["split"]) == {"train", "val", "test"}
    _images(folder / "more/x/1.png")
    with pytest.raises(DataError, match="images lie outside of the splits, in more"):
        read_folder(folder)


def test_what_would_be_left_out_of_a_folder_is_told(tmp_path):
    _images(*(tmp_path / f"{name}/1.png" for name in "xy"), tmp_path / "stray.png")
    (tmp_path / "z").mkdir()
    with pytest.raises(DataError) as caught:
        read_folder(tmp_path)
    assert "1 images lie beside the class folders" in str(caught.value)
    assert "the class folder z holds no image" in str(caught.value)


def test_a_name_that_is_no_text_is_told(tmp_path):
    _images(tmp_path / "x/1.png", tmp_path / "y/1.png", Path(os.fsdecode(os.fsencode(tmp_path) + b"/x/\xe4.png")))
    with pytest.raises(DataError, match="cannot be written to a table: rename it"):
        read_folder(tmp_path)
