"""What train, evaluate and predict share."""

import csv
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from medxfer.data.datamodule import PictureDataModule
from medxfer.data.manifest import read_manifest
from medxfer.errors import CheckpointError, ConfigError
from medxfer.results import FinishedRun, PredictionWriter, flat_metrics, predict_split, write_contact_sheet
from medxfer.training.trainer import build_predictor
from tests.conftest import SIZE_PX


@pytest.fixture
def run(finished) -> FinishedRun:
    return FinishedRun.open(finished)


def feed_of(manifest, splits: np.ndarray) -> PictureDataModule:
    pictures = np.random.default_rng(0).integers(0, 256, (len(manifest), SIZE_PX, SIZE_PX, 1), dtype=np.uint8)
    return PictureDataModule(pictures=pictures, targets=manifest.targets, splits=splits, batch_size=7)


def test_predicts_each_image_of_a_split_once_and_in_the_order_of_the_table(run, xrays):
    manifest = read_manifest(xrays).subset(np.arange(20))
    feed = feed_of(manifest, np.array(["test", "train"] * 10))
    trainer = build_predictor(accelerator="cpu", precision="32-true")
    found = predict_split(trainer, run.task(), feed, manifest, "test")
    rows = np.arange(0, 20, 2)
    assert found.paths == [manifest.paths[row] for row in rows]
    assert list(found.targets) == list(manifest.targets[rows])
    assert list(found.groups) == list(manifest.patients[rows])
    with torch.no_grad():
        images = torch.from_numpy(feed.pictures[rows]).permute(0, 3, 1, 2)
        expected = run.net(images).softmax(dim=1)
    np.testing.assert_allclose(found.probs, expected, atol=1e-5)


def test_flat_metrics_are_named_by_split_metric_and_class_without_what_is_undefined():
    entry = {"value": 0.5, "low": None, "high": None}
    per_class = {"a": entry, "b": {**entry, "value": None}}
    assert flat_metrics({"test": {"auroc": {**entry, "low": 0.25, "high": 0.75, "per_class": per_class}}}) == {
        "test/auroc": 0.5, "test/auroc/low": 0.25, "test/auroc/high": 0.75, "test/auroc/a": 0.5,
    }  # fmt: skip


def test_the_contact_sheet_is_written(xrays, tmp_path):
    manifest = read_manifest(xrays).subset(np.arange(3))
    write_contact_sheet(feed_of(manifest, np.array(["train"] * 3)), manifest, tmp_path / "sheet.png")
    assert (tmp_path / "sheet.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_that_is_not_finished_is_refused_with_the_way_to_finish_it(finished, tmp_path):
    broken = Path(shutil.copytree(finished, tmp_path / "run"))
    (broken / "checkpoints/best.ckpt").unlink()
    with pytest.raises(ConfigError, match=f"is not finished: python -m medxfer.train --resume {broken}"):
        FinishedRun.open(broken)
    (broken / "run.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"run\.json cannot be read"):
        FinishedRun.open(broken)


@pytest.mark.parametrize(
    ("task", "thresholds", "probs", "expected"),
    [
        ("binary", [0.3], [[0.7, 0.3], [0.71, 0.29]], ["y", "x"]),
        ("multiclass", [0.9, 0.1, 0.9], [[0.2, 0.35, 0.45], [0.5, 0.3, 0.2]], ["z", "x"]),
        ("multilabel", [0.9, 0.1, 0.5], [[0.2, 0.35, 0.5], [0.9, 0.0, 0.4]], [["0", "1", "1"], ["1", "0", "0"]]),
    ],
)
def test_decides_at_the_runs_threshold_or_by_the_largest(run, task, thresholds, probs, expected):
    names = ("x", "y", "z")[: len(probs[0])]
    other = replace(
        run, record={"thresholds": thresholds}, description=replace(run.description, task=task, class_names=names)
    )
    assert other.decide(np.array(probs)).tolist() == expected


def rows(path: Path) -> list[list[str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def write(run: FinishedRun, path: Path, *, fail: bool = False) -> PredictionWriter:
    files = [Path(f"{number}.png") for number in range(3)]
    with PredictionWriter(path, files=files, run=run) as writer:
        prediction = (torch.tensor([2, 0]), torch.tensor([[0.25, 0.75], [1.0, 0.0]]))
        writer.on_predict_batch_end(None, None, prediction, {"failures": [(1, "is empty")]}, 0)
        assert not path.exists()
        if fail:
            raise RuntimeError
    return writer


def test_rows_keep_the_order_of_the_input_and_name_what_cannot_be_read(run, tmp_path):
    writer = write(replace(run, record={"thresholds": [0.5]}), tmp_path / "p.csv")
    assert (writer.written, writer.failed) == (2, 1)
    table = pd.read_csv(tmp_path / "p.csv", keep_default_na=False, dtype=str)
    assert list(table["path"]) == ["0.png", "1.png", "2.png"]
    assert list(table["status"]) == ["ok", "is empty", "ok"]
    assert list(table["prob_opacity"]) == ["0.000000", "", "0.750000"]
    assert [cells[-1] for cells in rows(tmp_path / "p.csv")[1:]] == ["clear", "", "opacity"]


def test_a_prediction_that_fails_leaves_no_file(run, tmp_path):
    with pytest.raises(RuntimeError):
        write(run, tmp_path / "p.csv", fail=True)
    assert list(tmp_path.iterdir()) == []
