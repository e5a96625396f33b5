"""What a training says and leaves behind; its files and its MLflow run are tested in test_train.py."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from medxfer.config import TrainConfig
from medxfer.data.collection import Collection
from medxfer.data.duplicates import Duplicates
from medxfer.data.manifest import Manifest
from medxfer.errors import DataError
from medxfer.records import data_digest, peak_memory_mb, print_results, refuse_changed_data, split_digest
from medxfer.run_folder import RunFolder


class Pictures:
    def __init__(self, content: str) -> None:
        self.content = content

    def content_digest(self) -> str:
        return self.content


@pytest.fixture
def data() -> Collection:
    names = ("a.png", "b.png", "c.png")
    manifest = Manifest(
        names, tuple(map(Path, names)), np.array([0, 1, 1]), ("x", "y"), "binary", np.array(["p", "q", "r"]), None
    )
    nothing = Duplicates([], [])
    return Collection(manifest, Pictures("pixels"), np.array(["train", "val", "test"]), [], nothing)


def test_the_data_digest_is_over_labels_patients_and_images(data):
    changed = [
        replace(data, manifest=replace(data.manifest, targets=np.array([1, 1, 1]))),
        replace(data, manifest=replace(data.manifest, patients=np.array(["p", "q", "p"]))),
        replace(data, manifest=replace(data.manifest, patients=None)),
        replace(data, manifest=replace(data.manifest, class_names=("x", "z"))),
        replace(data, pictures=Pictures("others")),
    ]
    assert len({data_digest(one) for one in (data, *changed)}) == 6
    assert data_digest(replace(data, splits=np.array(["test", "val", "train"]))) == data_digest(data)


def test_the_split_digest_is_over_which_image_is_where(data):
    assert split_digest(replace(data, splits=np.array(["test", "val", "train"]))) != split_digest(data)
    reverse = np.array([2, 1, 0])
    turned = replace(data, manifest=data.manifest.subset(reverse), splits=data.splits[reverse])
    assert split_digest(turned) == split_digest(data)


def test_changed_data_are_refused_on_resume(data):
    record = {"data_digest": data_digest(data), "split_digest": split_digest(data)}
    refuse_changed_data(record, data)
    refuse_changed_data({}, data)  # the run was stopped before it wrote them
    for changed in (
        replace(data, pictures=Pictures("others")),
        replace(data, splits=np.array(["test", "train", "val"])),
    ):
        with pytest.raises(DataError, match="test split could no longer be trusted"):
            refuse_changed_data(record, changed)


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("sqlite:////runs/mlflow.db", "mlflow ui --backend-store-uri sqlite:////runs/mlflow.db"),
        ("https://ann:secret@mlflow.example.org/a", "open https://mlflow.example.org/a in a browser"),
    ],
)
def test_the_next_commands_fit_the_store_and_tell_no_secret(tmp_path, capsys, uri, said):
    folder = RunFolder.create(tmp_path / "run")
    folder.update_record({"tracking_uri": uri})
    entry = {"value": 0.5, "low": 0.25, "high": 0.75, "per_class": {}}
    print_results(folder, TrainConfig(), {"test": {"auroc": entry}}, has_patients=False)
    out = capsys.readouterr().out
    assert said in out
    assert "secret" not in out
    assert "intervals over images" in out
    assert json.loads(folder.record.read_text())["tracking_uri"] == uri


def test_peak_memory_is_at_least_what_is_held():
    held = np.ones(20_000_000)
    assert peak_memory_mb() > held.nbytes / 2**20
