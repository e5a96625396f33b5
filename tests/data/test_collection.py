"""From a config to labels, pictures and split, whose rows belong together."""

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from medxfer.config import DataConfig
from medxfer.data.collection import CHANNELS, Collection, build_collection, decode
from medxfer.data.decoding import Settings
from medxfer.data.fitting import fit_image
from medxfer.data.manifest import read_manifest
from medxfer.data.phantoms import write_xray_phantoms
from medxfer.data.reading import read_image
from medxfer.data.splits import check_split, split_by_fold, split_by_group
from medxfer.errors import DataError
from tests.conftest import SIZE_PX


def _build(source: Path, folder: Path, *, seed: int = 0, **settings: object) -> Collection:
    config = DataConfig(source=str(source), **{"image_size_px": SIZE_PX, **settings})
    return build_collection(config, store_folder=folder / "store", seed=seed, workers=1)


def _assert_aligned(found: Collection, *, channels: int, fit: str = "pad") -> None:
    """Assert that row i of manifest, pictures and splits is the same image."""
    assert len(found.manifest) == len(found.pictures) == len(found.splits) == len(found.manifest.targets)
    for row in range(0, len(found.manifest), 5):
        picture = fit_image(read_image(found.manifest.files[row], channels=channels), size_px=SIZE_PX, fit=fit)
        np.testing.assert_array_equal(found.pictures[row], picture)


def test_x_rays_of_a_table(xrays, tmp_path):
    found = _build(xrays, tmp_path)
    _assert_aligned(found, channels=1)
    with xrays.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(found.manifest.paths) == [row["path"] for row in rows]
    assert [found.manifest.label_text(i) for i in range(len(rows))] == [row["label"] for row in rows]
    assert found.manifest.groups().tolist() == [row["patient_id"] for row in rows]
    assert found.skipped == []
    check_split(found.splits, found.manifest.targets, class_names=("clear", "opacity"))


def test_lesions_have_three_channels_and_their_own_column_of_groups(lesions, tmp_path):
    found = _build(lesions, tmp_path, modality="dermoscopy", patient_column="lesion_id", fit="crop")
    _assert_aligned(found, channels=3, fit="crop")
    assert found.pictures[0].shape == (SIZE_PX, SIZE_PX, CHANNELS["dermoscopy"])
    assert found.manifest.groups()[0].startswith("L")


def test_the_split_is_that_of_fractions_and_seed(xrays, tmp_path):
    found = _build(xrays, tmp_path, seed=4, val_fraction=0.2, test_fraction=0.25)
    expected = split_by_group(
        found.manifest.targets, found.manifest.groups(), val_fraction=0.2, test_fraction=0.25, seed=4,
        class_names=found.manifest.class_names,
    )  # fmt: skip
    np.testing.assert_array_equal(found.splits, expected)
    assert not np.array_equal(_build(xrays, tmp_path, seed=5).splits, _build(xrays, tmp_path, seed=4).splits)


def test_the_split_is_a_fold_when_folds_are_asked_for(xrays, tmp_path):
    found = _build(xrays, tmp_path, folds=4, fold=1)
    names = found.manifest.class_names
    expected = split_by_fold(found.manifest.targets, found.manifest.groups(), folds=4, fold=1, seed=0,
                             class_names=names)  # fmt: skip
    np.testing.assert_array_equal(found.splits, expected)


def _with_splits(xrays: Path, path: Path) -> list[str]:
    """Copy the table with a column of splits by patient, beside the images."""
    with xrays.open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        row["split"] = {0: "val", 1: "test"}.get(int(row["patient_id"][1:]) // 2 % 5, "train")
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return [row["split"] for row in rows]


def test_a_given_split_is_kept(xrays, tmp_path):
    splits = _with_splits(xrays, tmp_path / "t.csv")
    found = _build(tmp_path / "t.csv", tmp_path, image_root=str(xrays.parent))
    assert found.splits.tolist() == splits


@pytest.fixture
def spoilt(xrays: Path, tmp_path: Path) -> Path:
    """A table of the first 30 images, of which three cannot be read."""
    lines = xrays.read_text().splitlines()[:31]
    root = tmp_path / "spoilt"
    (root / "images").mkdir(parents=True)
    for line in lines[1:]:
        name = line.split(",")[0]
        (root / name).symlink_to(xrays.parent / name)
    for row in (0, 7, 29):
        path = root / lines[row + 1].split(",")[0]
        path.unlink()
        path.write_text("no image")
    (root / "labels.csv").write_text("\n".join(lines))
    return root / "labels.csv"


def _settings(xrays: Path) -> dict[str, object]:
    return {"folder": xrays.parent, "settings": Settings(1, SIZE_PX, "pad"), "workers": 1}


def test_unreadable_images_are_an_error_that_lists_them(spoilt, xrays, tmp_path):
    manifest = read_manifest(spoilt, allow_outside_root=True)
    with pytest.raises(DataError) as caught:
        decode(manifest, **{**_settings(xrays), "folder": tmp_path / "store"}, on_unreadable="error")
    text = str(caught.value)
    assert text.startswith("3 of 30 images cannot be read:")
    assert all(f"{manifest.files[row]}: is not a PNG" in text for row in (0, 7, 29))


def test_unreadable_images_are_left_out_of_every_part_when_asked(spoilt, xrays, tmp_path):
    manifest = read_manifest(spoilt, allow_outside_root=True)
    found, pictures, skipped = decode(
        manifest, **{**_settings(xrays), "folder": tmp_path / "store"}, on_unreadable="skip"
    )
    kept = [row for row in range(30) if row not in (0, 7, 29)]
    assert [path for path, _ in skipped] == [manifest.paths[row] for row in (0, 7, 29)]
    assert all("is not a PNG" in reason for _, reason in skipped)
    assert found.paths == tuple(manifest.paths[row] for row in kept)
    np.testing.assert_array_equal(found.targets, manifest.targets[kept])
    assert found.groups().tolist() == manifest.groups()[kept].tolist()
    assert len(pictures) == 27
    for row in (0, 6, 26):
        expected = fit_image(read_image(found.files[row], channels=1), size_px=SIZE_PX, fit="pad")
        np.testing.assert_array_equal(pictures[row], expected)


def test_a_given_split_that_loses_a_class_with_its_unreadable_images_is_refused(tmp_path, xrays):
    splits = _with_splits(xrays, tmp_path / "t.csv")
    manifest = read_manifest(tmp_path / "t.csv", image_root=xrays.parent)
    root = tmp_path / "root"
    (root / "images").mkdir(parents=True)
    for path, file, target, split in zip(manifest.paths, manifest.files, manifest.targets, splits, strict=True):
        (root / path).write_bytes(b"" if split == "test" and target == 1 else file.read_bytes())
    with pytest.raises(DataError, match="the split test has no image of 'opacity'"):
        _build(tmp_path / "t.csv", tmp_path, image_root=str(root), on_unreadable="skip")


def test_a_table_that_cannot_be_used_is_refused_before_anything_is_decoded(xrays, tmp_path):
    with pytest.raises(DataError, match="there is no column 'diagnosis'"):
        _build(xrays, tmp_path, label_columns=["diagnosis"])
    assert not (tmp_path / "store").exists()


def test_several_label_columns_make_a_multilabel_collection(xrays, tmp_path):
    lines = xrays.read_text().splitlines()
    rng = np.random.default_rng(0)
    rows = [f"{line.split(',')[0]},{line.split(',')[2]},{a},{b}" for line, (a, b) in
            zip(lines[1:], rng.integers(0, 2, (len(lines) - 1, 2)), strict=True)]  # fmt: skip
    (tmp_path / "t.csv").write_text("\n".join(["path,patient_id,nodule,edema", *rows]))
    found = _build(tmp_path / "t.csv", tmp_path, image_root=str(xrays.parent), label_columns=["nodule", "edema"])
    assert found.manifest.task == "multilabel"
    assert found.manifest.targets.shape == (len(rows), 2)
    for split in ("train", "val", "test"):
        assert (found.manifest.targets[found.splits == split] == 1).any(axis=0).all()


def test_folds_and_a_given_split_exclude_each_other(tmp_path):
    table = write_xray_phantoms(tmp_path / "x", patients=12, size_px=32)
    rows = table.read_text().splitlines()
    parts = ["split", *(("train", "val", "test")[int(row.split(",")[2][1:]) // 2 % 3] for row in rows[1:])]
    table.write_text("\n".join(f"{row},{part}" for row, part in zip(rows, parts, strict=True)))
    settings = {"store_folder": tmp_path / "store", "seed": 0, "workers": 1}
    config = DataConfig(source=str(table), image_size_px=SIZE_PX, folds=3)
    with pytest.raises(DataError, match="the source gives the splits itself"):
        build_collection(config, **settings)
    assert build_collection(replace(config, split_column="none"), **settings).manifest.splits is None
