"""A folder of DICOM files becomes a table that names no patient."""

import hashlib
import hmac
import os
import stat
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset

from medxfer.data.dicom_files import write_dicom
from medxfer.data.scan import COLUMNS, KEY_FILE, keyed_hash, scan_folder
from medxfer.errors import DataError


def _film(path: Path, patient: str, **tags: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_dicom(path, np.arange(12 * 20, dtype=np.uint16).reshape(12, 20), patient_id=patient)
    if tags:
        dataset = pydicom.dcmread(path)
        for name, value in tags.items():
            setattr(dataset, name, value)
        dataset.save_as(path)
    return path


def test_each_picture_is_a_row_with_what_its_tags_say(tmp_path):
    _film(tmp_path / "b" / "1.dcm", "CANARY 17", ViewPosition="PA", ImageLaterality="L")
    _film(tmp_path / "b" / "no_suffix", "CANARY 17", ViewPosition="LL", Laterality="R", NumberOfFrames=1)
    _film(tmp_path / "a.IMA", "CANARY 18", Modality="DX")
    (tmp_path / "notes.txt").write_text("no picture")
    table, others = scan_folder(tmp_path, workers=1)
    assert others == []
    assert tuple(table.columns) == COLUMNS
    assert table["path"].tolist() == ["a.IMA", "b/1.dcm", "b/no_suffix"]
    assert table["label"].tolist() == ["", "", ""]
    assert table["modality"].tolist() == ["DX", "CR", "CR"]
    assert table["view"].tolist() == ["", "PA", "LL"]
    assert table["laterality"].tolist() == ["", "L", "R"]
    assert table["rows"].tolist() == ["12"] * 3
    assert table["columns"].tolist() == ["20"] * 3
    assert table["frames"].tolist() == ["1"] * 3
    assert table["patient_id"][1] == table["patient_id"][2] != table["patient_id"][0]
    assert "CANARY" not in table.to_csv()


def test_a_patient_s_name_is_the_standard_s_keyed_hash(tmp_path):
    _film(tmp_path / "1.dcm", "17", IssuerOfPatientID="here")  # which other files of the patient may lack
    table, _ = scan_folder(tmp_path, workers=1)
    key = (tmp_path / KEY_FILE).read_bytes()
    expected = hmac.new(key, b"17", hashlib.sha256).hexdigest()
    assert table["patient_id"][0] == expected[:16]
    assert keyed_hash("17", key) != keyed_hash("18", key)
    assert keyed_hash("17", b"another key") != table["patient_id"][0]


def test_the_key_is_kept_and_closed_to_others(tmp_path):
    _film(tmp_path / "1.dcm", "17")
    first, _ = scan_folder(tmp_path, workers=1)
    second, _ = scan_folder(tmp_path, workers=1)
    assert first.equals(second)
    assert stat.S_IMODE((tmp_path / KEY_FILE).stat().st_mode) == 0o600
    (tmp_path / KEY_FILE).unlink()
    assert scan_folder(tmp_path, workers=1)[0]["patient_id"][0] != first["patient_id"][0]


def test_a_damaged_key_is_refused(tmp_path):
    _film(tmp_path / "1.dcm", "17")
    (tmp_path / KEY_FILE).write_bytes(b"short")
    with pytest.raises(DataError, match="must hold 32 bytes, found 5"):
        scan_folder(tmp_path, workers=1)


def test_files_without_a_picture_or_a_patient_are_told(tmp_path):
    _film(tmp_path / "1.dcm", "")
    plan = Dataset()
    plan.file_meta = pydicom.dcmread(tmp_path / "1.dcm").file_meta
    plan.PatientID, plan.Modality = "CANARY", "RTPLAN"
    plan.save_as(tmp_path / "plan.dcm", enforce_file_format=True)
    (tmp_path / "torn.dcm").write_bytes((tmp_path / "1.dcm").read_bytes()[:200])
    table, others = scan_folder(tmp_path, workers=1)
    assert table["path"].tolist() == ["1.dcm"]
    assert table["patient_id"].tolist() == [""]
    assert [path for path, _ in others] == ["plan.dcm", "torn.dcm"]
    assert others[0][1] == "is a DICOM file without a picture (no pixel data)"
    assert "CANARY" not in str(others)


def test_odd_files_do_no_harm(tmp_path):
    folder = tmp_path / "pacs"
    formula = DataElement("Modality", "CS", "=1+1", validation_mode=pydicom.config.IGNORE)
    dataset = pydicom.dcmread(_film(folder / "1.dcm", "17"))
    dataset.add(formula)
    dataset.save_as(folder / "1.dcm")
    _film(tmp_path / "elsewhere" / "2.dcm", "18")
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    os.mkfifo(folder / "pipe.dcm")
    (folder / os.fsdecode(b"\xff\xfe.dcm")).write_bytes((folder / "1.dcm").read_bytes())
    table, others = scan_folder(folder, workers=1)
    assert table["path"].tolist() == ["1.dcm"]
    assert table["modality"].tolist() == ["1+1"]  # no formula in a spreadsheet
    assert [reason for _, reason in others] == ["has a name that cannot be written to a table: rename it"]
    (folder / KEY_FILE).unlink()
    os.mkfifo(folder / KEY_FILE)
    with pytest.raises(DataError, match="must hold 32 bytes"):
        scan_folder(folder, workers=1)


def test_nothing_to_scan_is_refused(tmp_path):
    with pytest.raises(DataError, match="there is no folder"):
        scan_folder(tmp_path / "no", workers=1)
    (tmp_path / "a.png").write_bytes(b"x")
    with pytest.raises(DataError, match="holds no DICOM file"):
        scan_folder(tmp_path, workers=1)
    assert not (tmp_path / KEY_FILE).exists()


@pytest.mark.skipif("MEDXFER_TEST_DATA" not in os.environ, reason="MEDXFER_TEST_DATA names no folder of real images")
def test_the_files_of_the_real_world(tmp_path):
    folder = tmp_path / "dicom"
    folder.mkdir()
    for file in sorted((Path(os.environ["MEDXFER_TEST_DATA"]) / "dicom").iterdir()):
        (folder / file.name).write_bytes(file.read_bytes())
    table, others = scan_folder(folder, workers=2)
    assert {"RG3_RLE.dcm", "image_dfl.dcm", "ExplVR_BigEnd.dcm"} <= set(table["path"])
    assert {"rtplan.dcm", "GH178.dcm", "chrJapMulti.dcm"} <= {path for path, _ in others}
    for row in table.to_dict("records"):
        dataset = pydicom.dcmread(folder / row["path"], force=True, stop_before_pixels=True)
        assert row["rows"] == str(dataset.Rows)
        assert row["modality"] == str(dataset.get("Modality", ""))
        assert bool(row["patient_id"]) == bool(str(dataset.get("PatientID") or "").strip())
