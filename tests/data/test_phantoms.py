"""Synthetic pictures: reproducible, readable, labelled, and no easier than they say."""

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score

from medxfer.data.manifest import read_manifest
from medxfer.data.phantoms import SOURCE_CLASSES, write_lesion_phantoms, write_source_phantoms, write_xray_phantoms
from medxfer.data.reading import read_image


def _rows(table: Path) -> list[dict[str, str]]:
    with table.open(newline="") as file:
        return list(csv.DictReader(file))


def _content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


WRITERS: dict[str, Callable[..., Path]] = {
    "xrays": lambda folder, **seed: write_xray_phantoms(folder, patients=6, size_px=64, **seed),
    "lesions": lambda folder, **seed: write_lesion_phantoms(folder, images=8, size_px=64, **seed),
    "source": lambda folder, **seed: write_source_phantoms(folder, images_per_class=2, size_px=48, **seed),
}


@pytest.mark.parametrize("name", sorted(WRITERS))
def test_the_same_seed_writes_the_same_bytes(tmp_path, name):
    for folder, seed in (("a", 0), ("b", 0), ("c", 1)):
        WRITERS[name](tmp_path / folder, seed=seed)
    first = _content(tmp_path / "a")
    assert first == _content(tmp_path / "b")
    assert first != _content(tmp_path / "c")


def test_more_patients_do_not_change_the_first_ones(tmp_path):
    few = write_xray_phantoms(tmp_path / "few", patients=3, size_px=64)
    many = write_xray_phantoms(tmp_path / "many", patients=5, size_px=64)
    assert many.read_text().startswith(few.read_text())
    assert _content(tmp_path / "few" / "images").items() <= _content(tmp_path / "many" / "images").items()


@pytest.mark.parametrize("name", sorted(WRITERS))
def test_a_folder_that_holds_files_already_is_not_overwritten(tmp_path, name):
    WRITERS[name](tmp_path / "a")
    with pytest.raises(FileExistsError):
        WRITERS[name](tmp_path / "a")


def test_x_rays_have_a_table_of_labels_and_patients(xrays):
    rows = _rows(xrays)
    assert list(rows[0]) == ["path", "label", "patient_id", "age", "sex", "view"]
    images: dict[str, list[str]] = {}
    for row in rows:
        images.setdefault(row["patient_id"], []).append(row["label"])
        assert 20 <= int(row["age"]) <= 80
        assert row["sex"] in ("F", "M")
        assert row["view"] in ("AP", "PA")
    assert len(images) == 40
    assert max(map(len, images.values())) == 3
    assert any(len(set(labels)) == 2 for labels in images.values())  # so that only a split by patient is honest
    shares = np.mean([row["label"] == "opacity" for row in rows])
    assert 0.35 < shares < 0.65
    assert {row["label"] for row in rows} == {"clear", "opacity"}
    assert {row["path"] for row in rows} == {f"images/{p.name}" for p in (xrays.parent / "images").iterdir()}


def test_x_rays_come_in_four_kinds_of_files(xrays):
    kinds = set()
    for row in _rows(xrays):
        path = xrays.parent / row["path"]
        if path.suffix == ".png":
            with Image.open(path) as picture:
                kinds.add(picture.mode)
        else:
            dataset = pydicom.dcmread(path)
            assert dataset.PatientID == row["patient_id"]
            kinds.add((dataset.PhotometricInterpretation, "WindowCenter" in dataset))
    assert kinds == {"L", "I;16", ("MONOCHROME2", True), ("MONOCHROME1", False)}


def test_every_x_ray_is_a_bright_body_with_dark_lungs(xrays):
    for row in _rows(xrays):
        film = read_image(xrays.parent / row["path"], channels=1)[..., 0].astype(float)
        height, width = film.shape
        assert min(height, width) >= 0.8 * 96
        assert max(height, width) <= 1.2 * 96
        lungs = [film[int(0.4 * height) : int(0.5 * height), int(x * width) : int((x + 0.06) * width)].mean()
                 for x in (0.27, 0.67)]  # fmt: skip
        spine = film[int(0.4 * height) : int(0.7 * height), int(0.47 * width) : int(0.53 * width)].mean()
        assert min(lungs) < 0.75 * spine, row["path"]  # none is inverted, whatever its file's kind


def test_the_mean_brightness_of_an_x_ray_says_little_about_its_label(xrays):
    rows = _rows(xrays)
    means = [float(read_image(xrays.parent / row["path"], channels=1).mean()) for row in rows]
    area = roc_auc_score([row["label"] == "opacity" for row in rows], means)
    assert 0.2 < area < 0.8


def test_lesions_have_a_table_of_labels_and_lesions(lesions):
    rows = _rows(lesions)
    assert list(rows[0]) == ["path", "label", "lesion_id"]
    assert len(rows) == 36
    by_lesion: dict[str, set[str]] = {}
    for row in rows:
        by_lesion.setdefault(row["lesion_id"], set()).add(row["label"])
    assert 25 <= len(by_lesion) < 36  # some are seen twice
    assert all(len(labels) == 1 for labels in by_lesion.values())
    assert 0.2 < np.mean([row["label"] == "malignant" for row in rows]) < 0.5


def test_turned_lesions_are_upright_when_read(lesions):
    turned = 0
    for row in _rows(lesions):
        path = lesions.parent / row["path"]
        with Image.open(path) as picture:
            turned += picture.getexif().get(0x0112) == 6
            colours = picture.mode
        height, width, _ = read_image(path, channels=3).shape
        assert width > height
        assert colours == "RGB"
    assert turned == 9


def test_malignant_lesions_have_more_colours(lesions):
    def spread(path: Path) -> float:
        picture = read_image(path, channels=3).astype(float)
        height, width, _ = picture.shape
        centre = picture[2 * height // 5 : 3 * height // 5, 2 * width // 5 : 3 * width // 5].reshape(-1, 3)
        return float(centre.std(axis=0).sum())

    rows = _rows(lesions)
    area = roc_auc_score(
        [row["label"] == "malignant" for row in rows], [spread(lesions.parent / r["path"]) for r in rows]
    )
    assert area > 0.8


def test_the_source_task_is_a_folder_of_class_folders(tmp_path):
    folder = write_source_phantoms(tmp_path / "source", images_per_class=3, size_px=48)
    manifest = read_manifest(folder)
    assert manifest.class_names == tuple(sorted(SOURCE_CLASSES))
    assert np.bincount(manifest.targets).tolist() == [3] * len(SOURCE_CLASSES)
    for file in manifest.files:
        picture = read_image(file, channels=3)
        assert picture.shape == (48, 48, 3)
        assert picture.std() > 5
