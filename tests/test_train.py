"""The main job through its real entry point, on phantoms."""

import json
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from mlflow import MlflowClient

from medxfer import train
from medxfer.errors import ConfigError
from medxfer.results import FinishedRun
from medxfer.training.callbacks.history import History
from tests.conftest import training_command


def client(folder: Path) -> MlflowClient:
    return MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")


def runs(folder: Path) -> list:
    """The trainings of a store, without the evaluations nested in them."""
    found = client(folder)
    everything = found.search_runs([e.experiment_id for e in found.search_experiments()])
    return [run for run in everything if "mlflow.parentRunId" not in run.data.tags]


def weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    return torch.load(checkpoint, weights_only=True)["state_dict"]


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def test_leaves_all_files_of_a_run(finished):
    names = {str(p.relative_to(finished)) for p in finished.rglob("*") if p.is_file() and not p.name.startswith(".")}
    kinds = ("confusion", "roc", "precision_recall", "reliability")
    figures = {f"figures/{split}_{kind}.png" for split in ("val", "test") for kind in kinds}
    assert names == figures | {
        "config.yaml", "run.json", "split.csv", "audit.json", "history.csv", "predictions.csv", "metrics.json",
        "checkpoints/best.ckpt", "checkpoints/last.ckpt", "figures/augmentation.png", "figures/learning_curves.png",
    }  # fmt: skip


def test_metrics_json_has_every_metric_with_its_interval(finished):
    metrics = json.loads((finished / "metrics.json").read_text())
    assert set(metrics) == {"val", "test"}
    assert set(metrics["test"]) == {
        "auroc", "average_precision", "sensitivity", "specificity", "balanced_accuracy", "accuracy", "f1", "brier",
        "ece",
    }  # fmt: skip
    for entry in metrics["test"].values():
        assert set(entry) == {"value", "low", "high", "per_class"}
        assert entry["low"] <= entry["high"]
    assert set(metrics["test"]["auroc"]["per_class"]) == {"opacity"}


@pytest.mark.parametrize("at", ["none", "cut"])
def test_what_is_kept_of_the_frozen_blocks_changes_nothing_but_the_time(finished, xrays, source, tmp_path, at):
    changes = {"stages__finetune_epochs": 2, "cache__at": at, "profile": "true"}
    assert train.main(training_command(tmp_path, xrays, source, **changes)) == 0
    for name in ("best.ckpt", "last.ckpt"):
        assert same(*(weights(run / "checkpoints" / name) for run in (finished, tmp_path / "run")))
    assert (tmp_path / "run" / "predictions.csv").read_text() == (finished / "predictions.csv").read_text()
    assert (tmp_path / "features").is_dir() == (at == "cut")
    profile = tmp_path / "run" / "profile"
    assert {path.name for path in profile.iterdir()} == {
        "blocks.csv", "blocks.txt", "trace-head.json", "trace-finetune.json", "trace-validation.json",
    }  # fmt: skip
    (run,) = runs(tmp_path)
    assert run.data.params["cache.at"] == at
    timed = {"decoding", "audit", "head", "finetune", "features", "evaluation"}
    assert {f"seconds/{part}" for part in timed} <= set(run.data.metrics)
    assert run.data.metrics["throughput/images_per_second"] > 0
    assert 0 <= run.data.metrics["throughput/wait_share"] <= 1


def test_predictions_and_split_agree(finished):
    predictions = pd.read_csv(finished / "predictions.csv")
    split = pd.read_csv(finished / "split.csv").set_index("path")
    assert list(predictions.columns) == ["path", "split", "target", "prob_clear", "prob_opacity"]
    assert not predictions["path"].duplicated().any()
    assert (split.loc[predictions["path"], "split"].to_numpy() == predictions["split"]).all()
    assert sorted(predictions["path"]) == sorted(split.index[split["split"] != "train"])
    np.testing.assert_allclose(predictions["prob_clear"] + predictions["prob_opacity"], 1, atol=2e-6)
    assert (split.groupby("patient_id")["split"].nunique() == 1).all()


def test_the_checkpoint_holds_the_source_in_its_frozen_part(finished, source):
    import safetensors.torch

    original = safetensors.torch.load_file(source)
    trained = weights(finished / "checkpoints" / "last.ckpt")  # the best may be the head stage's
    frozen = [key for key in original if not key.startswith(("Mixed_7b", "Mixed_7c"))]
    assert len(frozen) > 400
    assert all(torch.equal(trained[f"net.backbone.{key}"], original[key]) for key in frozen)
    tuned = [key for key in original if key.startswith(("Mixed_7b", "Mixed_7c"))]
    assert all(torch.equal(trained[f"net.backbone.{k}"], original[k]) for k in tuned if "running" in k)
    assert not any(torch.equal(trained[f"net.backbone.{k}"], original[k]) for k in tuned if k.endswith("weight"))


def test_mlflow_holds_one_finished_run_with_everything(finished):
    (run,) = runs(finished.parent)
    assert run.info.status == "FINISHED"
    assert run.info.run_id == json.loads((finished / "run.json").read_text())["mlflow_run_id"]
    params = run.data.params
    assert params["data.source"] == "labels.csv"
    assert params["model.weights"] == "source.safetensors"
    for name in ("optim.lr", "head_init.method", "stages.monitor", "loss.name", "trainer.precision", "seed"):
        assert name in params
    tags = run.data.tags
    for name in ("data_digest", "split_digest", "images.train", "version.torch", "hardware.cpu", "git_commit"):
        assert tags[name]
    assert tags["mlflow.user"] == ""
    metrics = run.data.metrics
    for name in ("val/auroc", "train/loss", "test/auroc", "test/auroc/low", "head_init/hidden/std", "seconds"):
        assert name in metrics
    assert any(name.startswith("system/") for name in metrics)
    history = client(finished.parent).get_metric_history(run.info.run_id, "val/auroc")
    assert len(history) == 3  # one per epoch; the best epoch's own metrics have another name
    best = json.loads((finished / "metrics.json").read_text())["val"]["auroc"]["value"]
    assert metrics["val_best/auroc"] == pytest.approx(best)
    assert max(point.value for point in history) == pytest.approx(best, abs=1e-6)
    (dataset,) = run.inputs.dataset_inputs
    assert dataset.dataset.name == "labels.csv"
    artifacts = {a.path for a in client(finished.parent).list_artifacts(run.info.run_id)}
    assert artifacts == {"config.yaml", "metrics.json", "history.csv", "figures", "checkpoints"}


def test_mlflow_holds_no_file_name_patient_or_path(finished, xrays):
    rows = pd.read_csv(xrays)
    secrets = [*rows["path"].map(lambda p: Path(p).name), *rows["patient_id"].unique(), str(xrays.parent)]
    (run,) = runs(finished.parent)
    texts = [str(run.data.to_dictionary()), str([d.to_dictionary() for d in run.inputs.dataset_inputs])]
    root = Path(run.info.artifact_uri.removeprefix("file://"))
    texts += [p.read_text() for p in root.rglob("*") if p.suffix in (".yaml", ".json", ".csv")]
    assert not [secret for secret in secrets for text in texts if secret in text]
    assert not (root / "figures" / "augmentation.png").exists()


def test_logs_predictions_and_pictures_only_when_asked(tmp_path, xrays, source):
    command = training_command(
        tmp_path, xrays, source, tracking__log_predictions="true", tracking__log_images="true", stages__head_epochs=0
    )
    assert train.main(command) == 0
    (run,) = runs(tmp_path)
    root = Path(run.info.artifact_uri.removeprefix("file://"))
    assert (root / "predictions.csv").is_file()
    assert (root / "figures" / "augmentation.png").is_file()


def test_says_what_it_does_and_what_comes_next(tmp_path, xrays, source, capsys):
    assert train.main(training_command(tmp_path, xrays, source, stages__finetune_epochs=0)) == 0
    out = capsys.readouterr().out
    for text in (
        "positive: opacity", "patients", "frozen up to Mixed_7a", "precision: 32-true", "95 % intervals over patients",
        "medxfer.predict --run", "medxfer.evaluate --run", "mlflow ui --backend-store-uri sqlite:///",
    ):  # fmt: skip
        assert text in out
    for layer in ("hidden", "output"):
        actual, formula = re.search(
            rf"head {layer} layer: standard deviation ([\d.]+), by the formula ([\d.]+)", out
        ).groups()
        assert float(actual) == pytest.approx(float(formula), rel=0.2)


def test_the_same_seed_gives_the_same_run_with_and_without_workers(tmp_path, xrays, source):
    for name, workers in (("none", 0), ("two", 2)):
        command = training_command(tmp_path, xrays, source, tracking__run_name=name, data__num_workers=workers)
        assert train.main(command) == 0
    first, second = tmp_path / "none", tmp_path / "two"
    for file in ("split.csv", "predictions.csv", "metrics.json"):
        assert (first / file).read_bytes() == (second / file).read_bytes()
    assert same(weights(first / "checkpoints/last.ckpt"), weights(second / "checkpoints/last.ckpt"))


def test_another_seed_gives_another_split(tmp_path, xrays, source):
    for seed in (0, 1):
        command = training_command(
            tmp_path, xrays, source, tracking__run_name=f"s{seed}", seed=seed, stages__head_epochs=0
        )
        assert train.main(command) == 0
    assert (tmp_path / "s0/split.csv").read_text() != (tmp_path / "s1/split.csv").read_text()


class _Killed(BaseException):
    pass


@pytest.mark.parametrize("after", [1, 2, 3])
def test_resuming_after_any_epoch_ends_in_the_weights_of_the_uninterrupted_run(
    tmp_path, xrays, source, monkeypatch, after
):
    """Two epochs of head, two of fine-tuning; killed after each of the first three."""
    epochs = {"stages__head_epochs": 2, "stages__finetune_epochs": 2}
    assert train.main(training_command(tmp_path, xrays, source, tracking__run_name="whole", **epochs)) == 0
    original = History.on_train_epoch_start

    def killed(self: History, trainer: object, pl_module: object) -> None:
        if trainer.current_epoch == after:
            raise _Killed
        original(self, trainer, pl_module)

    monkeypatch.setattr(History, "on_train_epoch_start", killed)
    with pytest.raises(_Killed):
        train.main(training_command(tmp_path, xrays, source, tracking__run_name="broken", **epochs))
    monkeypatch.undo()
    assert train.main(["--resume", str(tmp_path / "broken"), "--debug"]) == 0
    assert same(weights(tmp_path / "whole/checkpoints/last.ckpt"), weights(tmp_path / "broken/checkpoints/last.ckpt"))
    assert (tmp_path / "whole/metrics.json").read_bytes() == (tmp_path / "broken/metrics.json").read_bytes()
    history = pd.read_csv(tmp_path / "broken/history.csv")
    assert list(history["epoch"]) == [0, 1, 2, 3]
    assert list(history["stage"]) == ["head", "head", "finetune", "finetune"]
    assert sorted(run.info.status for run in runs(tmp_path)) == ["FINISHED", "FINISHED"]
    assert sorted(run.data.tags.get("resumptions", "0") for run in runs(tmp_path)) == ["0", "1"]


def test_killed_in_the_validation_behind_a_checkpoint_of_the_last_batch(tmp_path, xrays, source, monkeypatch):
    """A checkpoint after every batch: the last one is of an epoch's last batch, and its validation is still to come."""
    shared = {"stages__head_epochs": 1, "stages__finetune_epochs": 2}
    assert train.main(training_command(tmp_path, xrays, source, tracking__run_name="whole", **shared)) == 0
    original = train.TransferTask.validation_step

    def killed(self: object, batch: object, batch_idx: int) -> None:
        if self.current_epoch == 1:
            raise _Killed
        original(self, batch, batch_idx)

    monkeypatch.setattr(train.TransferTask, "validation_step", killed)
    with pytest.raises(_Killed):
        train.main(
            training_command(
                tmp_path, xrays, source, tracking__run_name="broken", checkpoint__every_minutes=1e-9, **shared
            )
        )
    monkeypatch.undo()
    assert train.main(["--resume", str(tmp_path / "broken"), "--debug"]) == 0
    assert same(weights(tmp_path / "whole/checkpoints/last.ckpt"), weights(tmp_path / "broken/checkpoints/last.ckpt"))
    assert (tmp_path / "whole/metrics.json").read_bytes() == (tmp_path / "broken/metrics.json").read_bytes()
    assert list(pd.read_csv(tmp_path / "broken/history.csv")["epoch"]) == [0, 1, 2]


def test_ctrl_c_in_mid_epoch_loses_nothing(tmp_path, xrays, source, monkeypatch, capsys):
    epochs = {"stages__head_epochs": 1, "stages__finetune_epochs": 1, "data__batch_size": 8}
    assert train.main(training_command(tmp_path, xrays, source, tracking__run_name="whole", **epochs)) == 0
    original = train.TransferTask.training_step

    def pressed(self: object, batch: object, batch_idx: int) -> object:
        if (self.current_epoch, batch_idx) == (1, 2):
            signal.raise_signal(signal.SIGINT)
        return original(self, batch, batch_idx)

    monkeypatch.setattr(train.TransferTask, "training_step", pressed)
    assert train.main(training_command(tmp_path, xrays, source, tracking__run_name="broken", **epochs)) == 130
    monkeypatch.undo()
    assert "--resume" in capsys.readouterr().err
    assert {run.info.run_name: run.info.status for run in runs(tmp_path)} == {"whole": "FINISHED", "broken": "KILLED"}
    assert train.main(["--resume", str(tmp_path / "broken"), "--debug"]) == 0
    assert same(weights(tmp_path / "whole/checkpoints/last.ckpt"), weights(tmp_path / "broken/checkpoints/last.ckpt"))
    assert {run.info.status for run in runs(tmp_path)} == {"FINISHED"}


def test_patience_moves_on_and_then_ends(tmp_path, xrays, source, monkeypatch):
    """A learning rate of nearly nothing cannot improve: each stage ends after patience + 1 epochs."""
    monkeypatch.setattr(train, "build_augmentation", lambda *_: None)
    command = training_command(
        tmp_path, xrays, source, stages__head_epochs=6, stages__finetune_epochs=6, stages__patience=1, optim__lr=1e-30
    )
    assert train.main(command) == 0
    history = pd.read_csv(tmp_path / "run/history.csv")
    assert list(history["stage"]) == ["head", "head", "finetune", "finetune"]


def test_a_finished_run_is_extended_by_more_epochs_only(tmp_path, xrays, source, capsys):
    assert train.main(training_command(tmp_path, xrays, source)) == 0
    run = str(tmp_path / "run")
    assert train.main(["--resume", run]) == 2
    assert "is finished; larger stages.head_epochs or stages.finetune_epochs extend it" in capsys.readouterr().err
    assert train.main(["--resume", run, "--stages.finetune_epochs", "2", "--debug"]) == 0
    assert list(pd.read_csv(tmp_path / "run/history.csv")["epoch"]) == [0, 1, 2]
    assert len(runs(tmp_path)) == 1
    assert train.main(["--resume", run, "--optim.lr", "0.5", "--stages.head_epochs", "0"]) == 2
    err = capsys.readouterr().err
    assert "optim.lr is 0.001 in the run and 0.5 now" in err
    assert "stages.head_epochs may only grow" in err


def test_a_head_stage_that_is_over_cannot_grow(finished, tmp_path, capsys):
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    assert train.main(["--resume", str(run), "--stages.head_epochs", "2"]) == 2
    assert "stages.head_epochs can no longer grow; stages.finetune_epochs can" in capsys.readouterr().err
    assert json.loads((run / "run.json").read_text())["status"] == "FINISHED"


def test_changed_labels_are_refused_on_resume(tmp_path, xrays, source, capsys):
    folder = Path(shutil.copytree(xrays.parent, tmp_path / "data"))
    assert train.main(training_command(tmp_path, folder / "labels.csv", source)) == 0
    rows = (folder / "labels.csv").read_text().splitlines()
    (folder / "labels.csv").write_text("\n".join(rows[:-1]) + "\n")
    assert train.main(["--resume", str(tmp_path / "run"), "--stages.finetune_epochs", "2"]) == 2
    assert "the labels, images or splits are not those that the run began with" in capsys.readouterr().err


def test_an_extension_that_was_stopped_has_no_threshold_until_it_is_finished(tmp_path, xrays, source, monkeypatch):
    assert train.main(training_command(tmp_path, xrays, source)) == 0

    def killed(*_: object) -> None:
        raise _Killed

    monkeypatch.setattr(History, "on_train_epoch_start", killed)
    with pytest.raises(_Killed):
        train.main(["--resume", str(tmp_path / "run"), "--stages.finetune_epochs", "2"])
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (record["status"], record["thresholds"]) == ("FAILED", None)
    assert [run.info.status for run in runs(tmp_path)] == ["FAILED"]
    with pytest.raises(ConfigError, match="is not finished"):
        FinishedRun.open(tmp_path / "run")
    monkeypatch.undo()
    assert train.main(["--resume", str(tmp_path / "run")]) == 0
    assert FinishedRun.open(tmp_path / "run").record["status"] == "FINISHED"


@pytest.mark.parametrize("step", ["predict_split", "log_evidence"])
def test_ctrl_c_behind_the_training_can_be_resumed(tmp_path, xrays, source, monkeypatch, capsys, step):
    def pressed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(train, step, pressed)
    command = training_command(tmp_path, xrays, source, stages__finetune_epochs=0, debug="false")
    assert train.main(command) == 130
    assert f"go on with: python -m medxfer.train --resume {tmp_path / 'run'}" in capsys.readouterr().err
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "KILLED"
    assert [run.info.status for run in runs(tmp_path)] == ["KILLED"]
    monkeypatch.undo()
    assert train.main(["--resume", str(tmp_path / "run"), "--debug"]) == 0
    (run,) = runs(tmp_path)
    assert run.info.status == "FINISHED"
    assert "test/auroc" in run.data.metrics


def test_ctrl_c_while_the_store_opens_leaves_nothing(tmp_path, xrays, source, monkeypatch):
    def pressed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "build_run", pressed)
    assert train.main(training_command(tmp_path, xrays, source, debug="false")) == 130
    assert not (tmp_path / "run").exists()


def test_a_training_that_diverges_is_told_and_keeps_its_best(tmp_path, xrays, source, capsys):
    command = training_command(
        tmp_path, xrays, source, optim__name="sgd", optim__lr=1e30, optim__gradient_clip=0, optim__weight_decay=0,
        stages__head_epochs=2, debug="false",
    )  # fmt: skip
    assert train.main(command) == 2
    assert "training diverged" in capsys.readouterr().err
    assert [run.info.status for run in runs(tmp_path)] == ["FAILED"]


def test_an_earlier_run_is_a_source_of_weights(tmp_path, lesions, finished):
    command = training_command(tmp_path, lesions, finished, data__modality="dermoscopy", stages__head_epochs=0)
    assert train.main(command) == 0
    source, target = weights(finished / "checkpoints/best.ckpt"), weights(tmp_path / "run/checkpoints/best.ckpt")
    key = "net.backbone.Mixed_6b.branch1x1.conv.weight"
    assert torch.equal(source[key], target[key])


def test_multilabel_multiclass_and_folders(tmp_path, lesions, source):
    rows = pd.read_csv(lesions)
    rows["large"] = ["1" if i % 3 else ("" if i % 2 else "0") for i in range(len(rows))]
    rows["malignant"] = (rows["label"] == "malignant").astype(int)
    rows.drop(columns=["label"]).to_csv(lesions.parent / "several.csv", index=False)
    shared = {"data__modality": "dermoscopy", "stages__head_epochs": 0}
    several = training_command(
        tmp_path, lesions.parent / "several.csv", source, tracking__run_name="several",
        data__label_columns="large,malignant", data__patient_column="lesion_id", loss__name="focal", **shared,
    )  # fmt: skip
    assert train.main(several) == 0
    predictions = pd.read_csv(tmp_path / "several/predictions.csv")
    assert list(predictions.columns[2:]) == ["target_large", "target_malignant", "prob_large", "prob_malignant"]
    for i, path in enumerate(rows["path"]):
        folder = tmp_path / "folders" / ["a", "b", "c"][i % 3]
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(lesions.parent / path, folder)
    classes = training_command(
        tmp_path, tmp_path / "folders", source, tracking__run_name="classes", loss__class_weights="balanced",
        model__normalization="dataset", **shared,
    )  # fmt: skip
    assert train.main(classes) == 0
    metrics = json.loads((tmp_path / "classes/metrics.json").read_text())
    assert set(metrics["test"]["sensitivity"]["per_class"]) == {"a", "b", "c"}
    record = json.loads((tmp_path / "classes/run.json").read_text())
    assert record["spec"]["input_mean"] != [0.5, 0.5, 0.5]


def test_random_weights_train_whole(tmp_path, xrays):
    command = training_command(
        tmp_path, xrays, "none", model__freeze_until="none", model__suffix_batch_norm="train", stages__head_epochs=0
    )
    assert train.main(command) == 0


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"data__source": "nowhere.csv"}, "there is no"),
        ({"model__weights": "nowhere.pth"}, "model.weights must be imagenet, none, or the path"),
        ({"model__weights": "none"}, "a frozen random backbone is numerically meaningless"),
        ({"model__weights": "imagenet"}, "medxfer.weights fetch"),
        ({"data__image_size_px": 74}, "data.image_size_px must be at least 75"),
        ({"data__sorce": "x"}, "did you mean data.source?"),
        ({"data__batch_siz": 3, "optim__lr": "fast"}, "optim.lr has a wrong value"),
        ({"model__freeze_until": "Mixed_9z"}, "Mixed_6e"),
        ({"data__label_columns": "diagnosis"}, "there is no column 'diagnosis'"),
        ({"data__folds": 2}, "data.folds must be at least 3"),
        ({"tracking__experiment": "Default"}, "tracking.experiment must be a name other than Default"),
        ({"tracking__uri": "sqlite:////tmp"}, "the MLflow store sqlite:///tmp cannot be used: Is a directory"),
        ({"tracking__uri": "postgresql://ann:secret@host/x"}, "the MLflow store postgresql://host cannot be used"),
        ({"tracking__uri": "sqlite:////proc/none/mlflow.db"}, "the MLflow store sqlite:///mlflow.db cannot be used"),
    ],
)  # fmt: skip
def test_mistakes_end_with_2_and_plain_lines(tmp_path, xrays, source, capsys, monkeypatch, changes, expected):
    def offline(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    assert train.main(training_command(tmp_path, xrays, source, debug="false", **changes)) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") or "\nerror: " in err
    assert expected in err
    assert "Traceback" not in err
    assert not (tmp_path / "run").exists()


def test_an_existing_folder_is_refused_and_left_alone(tmp_path, xrays, source, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine.txt").write_text("x")
    assert train.main(training_command(tmp_path, xrays, source, debug="false")) == 2
    assert "exists: choose another --tracking.run_name, or go on with it: --resume" in capsys.readouterr().err
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["mine.txt"]


def test_unreadable_images_are_listed_before_anything_is_trained(tmp_path, xrays, source, capsys):
    folder = tmp_path / "data"
    shutil.copytree(xrays.parent, folder)
    names = sorted(p.name for p in (folder / "images").iterdir())[:2]
    (folder / "images" / names[0]).write_bytes(b"")
    (folder / "images" / names[1]).write_bytes(b"no image at all")
    command = training_command(tmp_path / "out", folder / "labels.csv", source, debug="false")
    assert train.main(command) == 2
    err = capsys.readouterr().err
    assert "2 of" in err
    assert all(name in err for name in names)
    assert not (tmp_path / "out" / "run").exists()
    assert train.main([*command, "--data.on_unreadable", "skip"]) == 0
    assert names[1] not in (tmp_path / "out/run/split.csv").read_text()
    assert "skipped, unreadable" in capsys.readouterr().err


def test_debug_shows_the_traceback(tmp_path, xrays, source):
    with pytest.raises(Exception, match="there is no"):
        train.main(training_command(tmp_path, "nowhere.csv", source))


def test_help_and_print_config(capsys):
    for flag, text in (("--help", "Last frozen block, or none, or all."), ("--print_config", "freeze_until: Mixed_5d")):
        with pytest.raises(SystemExit) as ended:
            train.main([flag])
        assert ended.value.code == 0
        assert text in capsys.readouterr().out


def test_smoke_in_a_process_of_its_own(tmp_path, xrays, source):
    command = training_command(tmp_path, xrays, source, stages__head_epochs=0)
    done = subprocess.run(
        [sys.executable, "-m", "medxfer.train", *command], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
