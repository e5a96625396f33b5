"""What makes a result false is found, named and refused; what is sound is let through."""

import functools
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from medxfer.config import DataConfig
from medxfer.data.audit import Audit, audit, refuse_fatal
from medxfer.data.collection import Collection, build_collection
from medxfer.errors import DataError
from medxfer.evaluation.intervals import auroc_with_interval

SIZE = 96
Row = dict[str, str]


def picture(seed: int) -> np.ndarray:
    """A picture that has structure at all scales and resembles no other, uint8 (SIZE, SIZE)."""
    rng = np.random.default_rng(seed)
    layers = [cv2.resize(rng.normal(size=(n, n)), (SIZE, SIZE), interpolation=cv2.INTER_CUBIC) for n in (4, 8, 16, 32)]
    mixed = sum(layer / n**0.5 for layer, n in zip(layers, (4, 8, 16, 32), strict=True))
    return np.uint8(np.clip(128 + 110 * mixed, 0, 255))


@pytest.fixture
def rows(tmp_path: Path) -> list[Row]:
    """A sound collection: 60 images of 30 patients, two classes, a given split without leaks."""
    (tmp_path / "images").mkdir()
    rows = []
    for number in range(60):
        Image.fromarray(picture(number)).save(tmp_path / "images" / f"{number:02d}.png")
        patient = number // 2
        split = "train" if patient < 16 else ("val" if patient < 23 else "test")
        rows.append(
            {"path": f"images/{number:02d}.png", "label": "xy"[patient % 2], "patient_id": f"P{patient:02d}",
             "split": split}
        )  # fmt: skip
    return rows


def build(folder: Path, rows: Sequence[Row], **settings: object) -> Collection:
    lines = [",".join(rows[0]), *(",".join(row.values()) for row in rows)]
    (folder / "labels.csv").write_text("\n".join(lines))
    config = DataConfig(source=str(folder / "labels.csv"), **{"image_size_px": SIZE, **settings})
    return build_collection(config, store_folder=folder / "store", seed=0, workers=1)


def run(data: Collection, folder: Path, *, near_duplicates: str = "error", unreadable: str = "error") -> Audit:
    auroc = functools.partial(auroc_with_interval, task=data.manifest.task, seed=0, resamples=100)
    return audit(
        data, folder=folder / "store", near_duplicates=near_duplicates, unreadable=unreadable, seed=0, auroc=auroc
    )  # fmt: skip


def found(result: Audit, check: str) -> list[list[int]]:
    return [list(case.rows) for finding in result.findings if finding.check == check for case in finding.cases]


def checks(result: Audit) -> dict[str, str]:
    return {finding.check: finding.severity for finding in result.findings}


def test_a_sound_collection_has_nothing_fatal(tmp_path, rows):
    result = run(build(tmp_path, rows), tmp_path)
    assert result.fatal == []
    assert set(checks(result)) <= {"tiny_classes"}
    refuse_fatal(result, allow_leaks=False, source="labels.csv")


def test_a_patient_on_two_sides_is_fatal_and_the_images_are_named_but_not_the_patient(tmp_path, rows):
    rows[59]["patient_id"] = "P00"
    result = run(build(tmp_path, rows), tmp_path)
    assert checks(result)["leak"] == "fatal"
    assert found(result, "leak") == [[0, 1, 59]]
    with pytest.raises(DataError) as caught:
        refuse_fatal(result, allow_leaks=False, source="labels.csv")
    text = str(caught.value)
    assert "1 patient on more than one side of the split" in text
    assert "images/00.png (train) and images/01.png (train) and images/59.png (test)" in text
    assert "P00" not in text
    assert "--data.allow_leaks true" in text
    refuse_fatal(result, allow_leaks=True, source="labels.csv")


def test_a_lesion_on_two_sides_is_fatal_when_its_column_is_named(tmp_path, rows):
    for number, row in enumerate(rows):
        row["lesion"] = f"L{number}"
    rows[58]["lesion"] = "L3"
    rows[59]["lesion"] = rows[10]["lesion"] = ""  # unknown lesions are not the same one
    assert "leak" not in checks(run(build(tmp_path, rows), tmp_path))
    result = run(build(tmp_path, rows, group_columns=["lesion"]), tmp_path)
    assert checks(result)["leak"] == "fatal"
    assert found(result, "leak") == [[3, 58]]
    assert "1 lesion on more than one side" in result.fatal[0].text


def test_a_split_that_is_made_here_keeps_everything_together(tmp_path, rows):
    for number, row in enumerate(rows):
        row["lesion"] = f"L{number % 45}"
    Image.open(tmp_path / "images" / "04.png").save(tmp_path / "images" / "51.png")
    Image.open(tmp_path / "images" / "20.png").resize((150, 150)).save(tmp_path / "images" / "41.jpg", quality=60)
    rows[41]["path"] = "images/41.jpg"
    rows[4]["label"] = rows[5]["label"] = rows[50]["label"] = rows[51]["label"] = "x"
    for seed in range(3):
        data = build(tmp_path, rows, group_columns=["lesion"], split_column="none", val_fraction=0.2 + 0.01 * seed)
        for first, second in ((0, 45), (14, 59), (4, 51), (20, 41)):
            assert data.splits[first] == data.splits[second]
        result = run(data, tmp_path)
        assert result.fatal == []
        assert found(result, "two_patients") == [[4, 51]]
        assert found(result, "near_duplicates_together") == [[20, 41]]


def test_the_same_picture_on_two_sides_is_fatal_whatever_its_file(tmp_path, rows):
    Image.open(tmp_path / "images" / "02.png").save(tmp_path / "images" / "57.bmp")
    rows[57]["path"] = "images/57.bmp"
    result = run(build(tmp_path, rows, near_duplicates="off"), tmp_path)
    assert checks(result)["identical"] == "fatal"
    assert found(result, "identical") == [[2, 57]]


def test_one_picture_with_two_labels_is_fatal_also_on_one_side(tmp_path, rows):
    (tmp_path / "images" / "03.png").write_bytes((tmp_path / "images" / "00.png").read_bytes())
    result = run(build(tmp_path, rows), tmp_path)
    assert checks(result)["two_labels"] == "fatal"
    assert found(result, "two_labels") == [[0, 3]]
    assert "images/00.png (train, x) and images/03.png (train, y)" in result.fatal[0].cases[0].text


def test_of_many_copies_a_few_are_named_and_what_they_differ_in_is_seen(tmp_path, rows):
    for number in range(40):
        (tmp_path / "images" / f"{number:02d}.png").write_bytes((tmp_path / "images" / "00.png").read_bytes())
    data = build(tmp_path, rows)
    result = run(data, tmp_path)
    (case,) = [case for finding in result.findings if finding.check == "identical" for case in finding.cases]
    assert case.rows == tuple(range(40))
    assert case.named == (0, 1, 2, 3, 4, 32)
    assert case.text.endswith("images/04.png (train) and images/32.png (val) and 34 more")
    (case,) = [case for finding in result.findings if finding.check == "two_labels" for case in finding.cases]
    assert case.named == (0, 1, 2, 3, 32, 34)  # train and val, x and y
    (finding,) = [one for one in result.to_dict(data)["findings"] if one["check"] == "identical"]
    assert len(finding["cases"][0]["images"]) == 40


def test_copies_on_one_side_with_one_label_are_a_warning(tmp_path, rows):
    (tmp_path / "images" / "01.png").write_bytes((tmp_path / "images" / "00.png").read_bytes())
    result = run(build(tmp_path, rows), tmp_path)
    assert checks(result)["repeated"] == "warning"
    assert found(result, "repeated") == [[0, 1]]
    assert result.fatal == []


@pytest.mark.parametrize(("choice", "severity"), [("error", "fatal"), ("warn", "warning"), ("off", None)])
def test_nearly_the_same_picture_on_two_sides_is_what_the_user_says(tmp_path, rows, choice, severity):
    turned = Image.open(tmp_path / "images" / "06.png").transpose(Image.Transpose.FLIP_LEFT_RIGHT).resize((130, 130))
    turned.point(lambda grey: min(255, grey * 0.9 + 12)).save(tmp_path / "images" / "56.jpg", quality=70)
    rows[56]["path"] = "images/56.jpg"
    result = run(build(tmp_path, rows, near_duplicates=choice), tmp_path, near_duplicates=choice)
    assert checks(result).get("near_duplicates") == severity
    assert found(result, "near_duplicates") == ([[6, 56]] if severity else [])


@pytest.mark.parametrize(("choice", "severity"), [("error", "fatal"), ("skip", "warning")])
def test_unreadable_images_are_told_beside_everything_else(tmp_path, rows, choice, severity):
    (tmp_path / "images" / "09.png").write_bytes(b"")
    data = build(tmp_path, rows, on_unreadable="skip")
    result = run(data, tmp_path, unreadable=choice)
    assert checks(result)["unreadable"] == severity
    (finding,) = [finding for finding in result.findings if finding.check == "unreadable"]
    assert finding.cases[0].text.endswith("09.png: is empty")
    assert "1 of 60 images" in finding.text


def test_columns_that_predict_the_label_are_named_and_others_are_not(tmp_path, rows):
    rng = np.random.default_rng(3)
    for row in rows:
        row["device"] = "D1" if (row["label"] == "x") != (rng.random() < 0.05) else "D2"
        row["weekday"] = str(rng.integers(7))
    result = run(build(tmp_path, rows), tmp_path)
    (finding,) = [finding for finding in result.findings if finding.check == "confounders"]
    assert finding.severity == "warning"
    named = {case.text.partition(":")[0] for case in finding.cases}
    assert "device" in named
    assert "weekday" not in named
    assert {"device", "weekday", "mean grey"} <= {one.name for one in result.predictors}


def test_what_files_are_like_can_give_the_label_away(tmp_path, rows):
    for number, row in enumerate(rows):
        if row["label"] == "y":
            Image.open(tmp_path / row["path"]).save(tmp_path / "images" / f"{number:02d}.bmp")
            row["path"] = f"images/{number:02d}.bmp"
    result = run(build(tmp_path, rows), tmp_path)
    (finding,) = [finding for finding in result.findings if finding.check == "confounders"]
    assert "file format" in {case.text.partition(":")[0] for case in finding.cases}


def test_imbalance_empty_and_bordered_pictures_and_mixed_modes_are_warnings(tmp_path, rows):
    for row in rows[4:]:
        row["label"] = "x"
    rows[0]["label"], rows[32]["label"], rows[46]["label"] = "y", "y", "y"
    rows[1]["label"] = rows[2]["label"] = rows[3]["label"] = "x"
    rows[0]["patient_id"], rows[32]["patient_id"], rows[46]["patient_id"] = "A", "B", "C"
    Image.new("L", (SIZE, SIZE), 40).save(tmp_path / "images" / "10.png")
    bordered = picture(11)
    bordered[:20] = 0
    Image.fromarray(bordered).save(tmp_path / "images" / "11.png")
    Image.fromarray(np.stack([picture(12)] * 3, axis=2)).save(tmp_path / "images" / "12.png")
    result = run(build(tmp_path, rows), tmp_path)
    assert result.fatal == []
    assert {"imbalance", "tiny_classes", "empty", "borders", "mixed_colours"} <= set(checks(result))
    assert found(result, "empty") == [[10]]
    assert found(result, "borders") == [[11]]


def test_without_patients_leaks_cannot_be_excluded(tmp_path, rows):
    for row in rows:
        del row["patient_id"]
    assert checks(run(build(tmp_path, rows), tmp_path))["no_patients"] == "warning"


def test_the_record_holds_every_case_by_path(tmp_path, rows):
    rows[59]["patient_id"] = "P00"
    data = build(tmp_path, rows)
    record = run(data, tmp_path).to_dict(data)
    assert record["fit_for_training"] is False
    assert record["splits"] == {"train": 32, "val": 14, "test": 14}
    (leak,) = [finding for finding in record["findings"] if finding["check"] == "leak"]
    assert leak["cases"][0]["images"] == ["images/00.png", "images/01.png", "images/59.png"]


def test_a_multilabel_collection_is_judged_per_label(tmp_path, rows):
    rng = np.random.default_rng(0)
    for row in rows:
        del row["label"]
        row["a"], row["b"] = str(rng.integers(2)), rng.choice(["0", "1", ""])
    rows[1]["a"] = "1" if rows[0]["a"] == "0" else "0"
    (tmp_path / "images" / "01.png").write_bytes((tmp_path / "images" / "00.png").read_bytes())
    result = run(build(tmp_path, rows, label_columns=["a", "b"]), tmp_path)
    assert found(result, "two_labels") == [[0, 1]]


@pytest.mark.parametrize("negatives", [[], [7], [3, 20, 41]])
def test_negatives_among_films_of_one_kind_are_named(tmp_path, rows, negatives):
    body = cv2.GaussianBlur(np.pad(np.full((56, 40), 200.0), ((20, 20), (28, 28))), (0, 0), 8)
    for number, row in enumerate(rows):
        film = np.clip(0.7 * body + 0.3 * picture(number), 0, 255).astype(np.uint8)
        Image.fromarray(255 - film if number in negatives else film).save(tmp_path / row["path"])
    result = run(build(tmp_path, rows, near_duplicates="off"), tmp_path)
    assert [rows for (rows,) in found(result, "negatives")] == negatives


def test_a_group_column_may_be_called_patient(tmp_path, rows):
    rows[59]["patient_id"] = "P00"
    for number, row in enumerate(rows):
        row["patient"] = f"L{number}"
    assert found(run(build(tmp_path, rows, group_columns=["patient"]), tmp_path), "leak") == [[0, 1, 59]]


def test_nearly_the_same_picture_with_two_labels_is_named_also_on_one_side(tmp_path, rows):
    Image.open(tmp_path / "images" / "06.png").resize((130, 130)).save(tmp_path / "images" / "04.jpg", quality=70)
    rows[4]["path"], rows[4]["label"], rows[5]["label"] = "images/04.jpg", "x", "x"
    assert rows[6]["label"] == "y"
    result = run(build(tmp_path, rows), tmp_path)
    assert checks(result)["near_two_labels"] == "warning"
    assert found(result, "near_two_labels") == [[4, 6]]


def test_an_unknown_label_contradicts_none(tmp_path, rows):
    for number, row in enumerate(rows):
        row["a"], row["b"] = str(number // 2 % 2), str(number // 4 % 2)
    rows[0]["a"], rows[0]["b"], rows[1]["a"], rows[1]["b"] = "1", "", "1", "0"
    (tmp_path / "images" / "01.png").write_bytes((tmp_path / "images" / "00.png").read_bytes())
    assert "two_labels" not in checks(run(build(tmp_path, rows, label_columns=["a", "b"]), tmp_path))


def test_class_folders_are_no_confounder(tmp_path, rows):
    for row in rows:
        (tmp_path / row["label"]).mkdir(exist_ok=True)
        path = f"{row['label']}/{Path(row['path']).name}"
        (tmp_path / row["path"]).rename(tmp_path / path)
        row["path"] = path
    result = run(build(tmp_path, rows), tmp_path)
    assert "confounders" not in checks(result)
    assert "source folder" not in {one.name for one in result.predictors}


def test_what_may_be_behind_a_split_that_fails_is_told(tmp_path, rows):
    for row in rows:
        del row["split"]
        (tmp_path / row["path"]).write_bytes((tmp_path / "images" / "00.png").read_bytes())
    (tmp_path / "images" / "09.png").write_bytes(b"")
    with pytest.raises(DataError) as caught:
        build(tmp_path, rows, on_unreadable="skip")
    text = str(caught.value)
    assert "copies are kept together" in text
    assert "images/00.png and images/01.png and images/02.png" in text
    assert "images/09.png: is empty" in text
