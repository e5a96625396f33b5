"""A finished run on files, through the real entry point."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from medxfer import predict


def command(run: Path, *inputs: Path, output: Path, more: tuple[str, ...] = ()) -> list[str]:
    return [
        "--run",
        str(run),
        *map(str, inputs),
        "--output",
        str(output),
        "--num_workers=0",
        "--accelerator=cpu",
        *more,
    ]


def test_gives_the_probabilities_of_the_training_s_own_test(finished, xrays, tmp_path):
    known = pd.read_csv(finished / "predictions.csv")
    files = [xrays.parent / path for path in known["path"]]
    assert predict.main(command(finished, *files, output=tmp_path / "p.csv", more=("--batch_size=3",))) == 0
    table = pd.read_csv(tmp_path / "p.csv")
    assert list(table.columns) == ["path", "status", "prob_clear", "prob_opacity", "decision"]
    assert list(table["path"]) == [str(file) for file in files]
    np.testing.assert_allclose(table["prob_opacity"], known["prob_opacity"], atol=1e-5)
    threshold = json.loads((finished / "run.json").read_text())["thresholds"][0]
    assert list(table["decision"]) == ["opacity" if p >= threshold else "clear" for p in table["prob_opacity"]]
    assert set(table["status"]) == {"ok"}


def test_folders_with_unreadable_files_give_their_reasons_and_exit_code_1(finished, xrays, tmp_path, capsys):
    folder = tmp_path / "mixed"
    (folder / "deep").mkdir(parents=True)
    names = pd.read_csv(xrays)["path"].tolist()[:6]
    for name in names:
        shutil.copy(xrays.parent / name, folder / "deep")
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (folder / "empty.dcm").write_bytes(b"")
    (folder / "notes.txt").write_text("no image")
    missing = tmp_path / "missing.png"
    assert predict.main(command(finished, folder, missing, output=tmp_path / "p.csv")) == 1
    table = pd.read_csv(tmp_path / "p.csv", keep_default_na=False).set_index("path")
    assert len(table) == 6 + 3
    assert (table["status"] == "ok").sum() == 6
    assert table.loc[str(folder / "empty.dcm"), "status"] == "is empty"
    assert table.loc[str(folder / "broken.png"), "status"] == "is not a PNG, JPEG, TIFF, BMP, WebP or DICOM image"
    assert "No such file" in table.loc[str(missing), "status"]
    assert table.loc[str(missing), "decision"] == ""
    assert "6 images predicted, 3 unreadable" in capsys.readouterr().out


def test_a_batch_of_unreadable_files_alone(finished, tmp_path):
    (tmp_path / "a.png").write_bytes(b"")
    assert predict.main(command(finished, tmp_path / "a.png", output=tmp_path / "p.csv")) == 1
    assert len(pd.read_csv(tmp_path / "p.csv")) == 1


def test_workers_do_not_change_the_order(finished, xrays, tmp_path):
    for workers in (0, 2):
        arguments = command(finished, xrays.parent / "images", output=tmp_path / f"{workers}.csv")
        arguments[arguments.index("--num_workers=0")] = f"--num_workers={workers}"
        assert predict.main(arguments) == 0
    assert (tmp_path / "0.csv").read_bytes() == (tmp_path / "2.csv").read_bytes()


def test_mistakes_on_the_command_line(finished, tmp_path, capsys):
    picture = tmp_path / "a.png"
    Image.fromarray(np.zeros((80, 80), dtype=np.uint8)).save(picture)
    assert predict.main(["--run", str(finished)]) == 2
    assert "--run RUN_FOLDER, at least one image or folder, and --output CSV are needed" in capsys.readouterr().err
    assert predict.main(command(finished, picture, output=picture)) == 2
    assert "exists: choose another --output" in capsys.readouterr().err
    assert predict.main(command(finished, picture, output=tmp_path / "no/p.csv")) == 2
    assert "the folder of --output does not exist" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert predict.main(command(finished, tmp_path / "empty", output=tmp_path / "p.csv")) == 2
    assert "holds no image that can be read" in capsys.readouterr().err
    assert not (tmp_path / "p.csv").exists()


def test_a_checkpoint_that_is_no_checkpoint_is_refused(finished, tmp_path, xrays, capsys):
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    (run / "checkpoints/best.ckpt").write_bytes(b"nothing")
    assert predict.main(command(run, xrays.parent / "images", output=tmp_path / "p.csv")) == 2
    assert "best.ckpt" in capsys.readouterr().err


def test_smoke_in_a_process_of_its_own(finished, xrays, tmp_path):
    arguments = command(finished, xrays.parent / "images", output=tmp_path / "p.csv")
    done = subprocess.run(
        [sys.executable, "-m", "medxfer.predict", *arguments], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
