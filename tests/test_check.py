"""The audit through its real entry point: exit codes, files, and what is said."""

import csv
import json
import os
import stat
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from medxfer import check, train
from medxfer.data.dicom_files import write_dicom
from medxfer.data.phantoms import write_xray_phantoms
from tests.conftest import SIZE_PX, training_command

ROOT = Path(__file__).parents[1]


def arguments(runs: Path, table: Path, **settings: object) -> list[str]:
    values = {"output_dir": runs, "data.source": table, "data.image_size_px": SIZE_PX, **settings}
    return [f"--{name.replace('__', '.')}={value}" for name, value in values.items()]


@pytest.fixture
def leaky(tmp_path: Path) -> Path:
    """A table with a patient on two sides, a copied image and a broken file."""
    table = write_xray_phantoms(tmp_path / "leaky", patients=30, size_px=96)
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        patient = int(row["patient_id"][1:])
        row["split"] = "train" if patient < 16 else ("val" if patient < 23 else "test")
    rows[-1]["patient_id"] = rows[0]["patient_id"]
    picture = next(row for row in rows if row["path"].endswith(".png") and row["split"] == "train")
    copy = next(row for row in rows if row["path"].endswith(".png") and row["split"] == "val")
    Image.open(table.parent / picture["path"]).save(table.parent / copy["path"])
    broken = next(row for row in rows if row["path"].endswith(".dcm") and row["split"] == "train")
    (table.parent / broken["path"]).write_bytes(b"")
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return table


def test_a_sound_collection_is_fit_and_leaves_page_and_record(xrays, tmp_path, capsys):
    assert check.main(arguments(tmp_path / "runs", xrays)) == 0
    out = capsys.readouterr().out
    place = tmp_path / "runs" / "audits" / f"{xrays.parent.name}-labels"
    assert "Fit for training" in out
    assert str(place / "audit.html") in out
    assert {path.name for path in place.iterdir()} == {"audit.html", "audit.json"}
    assert stat.S_IMODE(place.stat().st_mode) == 0o700
    record = json.loads((place / "audit.json").read_text())
    assert record["fit_for_training"] is True
    assert record["images"] == len(pd.read_csv(xrays))
    assert check.main(arguments(tmp_path / "runs", xrays, output=tmp_path / "elsewhere")) == 0
    assert (tmp_path / "elsewhere" / "audit.html").is_file()


def test_everything_fatal_is_told_at_once(leaky, tmp_path, capsys):
    assert check.main(arguments(tmp_path / "runs", leaky)) == 1
    out = capsys.readouterr().out
    assert "Not fit for training" in out
    for text in (
        "images cannot be read",
        "1 patient on more than one side",
        "with copies (identical pixels) on another",
    ):
        assert f"FATAL: 1 {text}" in out or f"FATAL: {text}" in out or text in out
    record = json.loads(next((tmp_path / "runs" / "audits").glob("*/audit.json")).read_text())
    fatal = {finding["check"] for finding in record["findings"] if finding["severity"] == "fatal"}
    assert {"unreadable", "leak", "identical"} <= fatal


def test_training_refuses_the_same_and_says_so_when_it_is_allowed(leaky, tmp_path, source, capsys):
    settings = {"debug": "false", "data__on_unreadable": "skip", "stages__head_epochs": 1, "stages__finetune_epochs": 0}
    assert train.main(training_command(tmp_path / "runs", leaky, source, **settings)) == 2
    err = capsys.readouterr().err
    assert "a result on labels.csv would be false" in err
    assert "1 patient on more than one side of the split" in err
    assert "Traceback" not in err
    assert not (tmp_path / "runs" / "run").exists()
    assert train.main(training_command(tmp_path / "runs", leaky, source, data__allow_leaks="true", **settings)) == 0
    assert "LEAK, ALLOWED: 1 patient on more than one side" in capsys.readouterr().out
    record = json.loads((tmp_path / "runs" / "run" / "run.json").read_text())
    assert {"leak", "identical"} <= set(record["audit"]["fatal"])
    assert json.loads((tmp_path / "runs" / "run" / "audit.json").read_text())["fit_for_training"] is False


def test_the_configs_of_trainings_can_be_audited(xrays, tmp_path, capsys):
    files = [f"--config={ROOT / 'configs' / name}" for name in ("xray.yaml",)]
    assert check.main([*files, *arguments(tmp_path / "runs", xrays)]) == 0
    (tmp_path / "wrong.yaml").write_text("optim:\n  lrr: 1\ndata:\n  sauce: x\n")
    assert check.main([f"--config={tmp_path / 'wrong.yaml'}", *arguments(tmp_path / "runs", xrays)]) == 2
    err = capsys.readouterr().err
    assert "optim.lrr is not a setting" in err
    assert "data.sauce is not a setting" in err
    assert check.main(["--optim.lr=1", *arguments(tmp_path / "runs", xrays)]) == 2
    assert "optim.lr is not a setting (on the command line)" in capsys.readouterr().err


def test_a_scanned_folder_can_be_labelled_and_audited(tmp_path, capsys):
    folder = tmp_path / "pacs"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(24):
        film = rng.integers(0, 4096, (90, 80), dtype=np.uint16)
        write_dicom(folder / f"{number:02d}", film, patient_id=f"CANARY{number // 2}")
    table = folder / "labels.csv"
    assert check.main(["--scan", str(folder), "--output", str(table)]) == 0
    said = capsys.readouterr()
    assert "24 pictures of 12 patients" in said.out
    assert "CANARY" not in said.out + said.err + table.read_text()
    assert check.main(["--scan", str(folder), "--output", str(table)]) == 2
    assert "exists, maybe with labels in it" in capsys.readouterr().err
    assert check.main(arguments(tmp_path / "runs", table)) == 2
    assert "24 of 24 rows have no label" in capsys.readouterr().err
    rows = pd.read_csv(table, dtype=str)
    rows["label"] = ["xy"[number // 2 % 2] for number in range(24)]
    rows.to_csv(table, index=False)
    assert check.main(arguments(tmp_path / "runs", table)) == 0


def test_a_table_outside_of_the_scanned_folder_says_where_its_images_are(tmp_path, capsys):
    (tmp_path / "pacs").mkdir()
    (tmp_path / "tables").mkdir()
    write_dicom(tmp_path / "pacs" / "1.dcm", np.zeros((8, 8), np.uint16), patient_id="p")
    assert check.main(["--scan", str(tmp_path / "pacs"), "--output", str(tmp_path / "tables" / "t.csv")]) == 0
    assert f"--data.image_root {tmp_path / 'pacs'}" in capsys.readouterr().out
    assert pd.read_csv(tmp_path / "tables" / "t.csv")["path"].tolist() == ["1.dcm"]
    assert check.main(["--scan", str(tmp_path / "pacs"), "--output", str(tmp_path / "all.csv")]) == 0
    assert pd.read_csv(tmp_path / "all.csv")["path"].tolist() == ["pacs/1.dcm"]


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ([], "data.source must name a CSV"),
        (["--scan", "x"], "--scan needs the table to write"),
        (["--scan", "x", "--output", "y.csv", "--data.source", "z.csv"], "give one of them"),
        (["--scan", "/does/not/exist", "--output", "y.csv"], "there is no folder /does/not/exist"),
        (["--scan", ".", "--output", "/does/not/exist/y.csv"], "the folder of --output does not exist"),
        (["--data.source", "no.csv"], "there is no no.csv"),
    ],
)
def test_mistakes_are_told_in_plain_lines(line, text, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert check.main(line) == 2
    err = capsys.readouterr().err
    assert text in err
    assert "Traceback" not in err


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_place_that_cannot_be_written_to_is_named(xrays, tmp_path, capsys):
    (tmp_path / "closed").mkdir(mode=0o500)
    assert check.main(arguments(tmp_path / "runs", xrays, output=tmp_path / "closed" / "a")) == 2
    assert "the audit cannot be written to" in capsys.readouterr().err
