"""One MLflow run, in a SQLite store."""

import hashlib
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from medxfer.config import TrackingConfig
from medxfer.errors import ConfigError
from medxfer.tracking.mlflow_run import MlflowRun, build_run, resolve_uri


def start(folder: Path, **changes: object) -> MlflowRun:
    return build_run(TrackingConfig(experiment="e"), **{"output_dir": folder, "name": "n", **changes})


def stored(run: MlflowRun) -> Run:
    return MlflowClient(run.uri).get_run(run.run_id)


def test_the_store_is_the_configs_or_the_environments_or_a_file_beside_the_runs(tmp_path, monkeypatch):
    assert resolve_uri(TrackingConfig(), tmp_path) == f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://there")
    assert resolve_uri(TrackingConfig(), tmp_path) == "http://there"
    assert resolve_uri(TrackingConfig(uri="http://here"), tmp_path) == "http://here"


def test_holds_what_was_logged(tmp_path):
    run = start(tmp_path)
    run.log_params({"a.b": 1, "long": "x" * 900, "odd:name": None})
    run.set_tags({"t": 2})
    run.log_metrics({"test/auroc": 0.5, "test/sensitivity/mélanome?": 0.25})
    run.log_dataset(name="labels.csv", digest="d" * 64, profile="{}", context="training")
    run.log_text("hello", "config.yaml")
    (tmp_path / "figure.png").write_bytes(b"x")
    run.log_files([tmp_path / "figure.png"], folder="figures")
    run.finish("FINISHED")
    found = stored(run)
    digest = hashlib.sha256("test/sensitivity/mélanome?".encode()).hexdigest()[:6]
    assert found.info.status == "FINISHED"
    assert found.data.params == {"a.b": "1", "long": "x" * 500, "odd_name-58b694": "None"}
    assert run.params() == found.data.params
    assert found.data.tags["t"] == "2"
    assert found.data.metrics == {"test/auroc": 0.5, f"test/sensitivity/m_lanome_-{digest}": 0.25}
    (dataset,) = found.inputs.dataset_inputs
    assert (dataset.dataset.name, dataset.dataset.digest) == ("labels.csv", "d" * 36)
    assert (tmp_path / "mlartifacts" / run.run_id / "artifacts/figures/figure.png").is_file()


def test_more_parameters_than_one_request_takes(tmp_path):
    run = start(tmp_path)
    run.log_params({f"p{i}": i for i in range(250)})
    assert len(run.params()) == 250


def test_neither_user_nor_script_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("LOGNAME", "ann")
    tags = stored(start(tmp_path)).data.tags
    assert tags["mlflow.user"] == ""
    assert tags["mlflow.source.name"] == "medxfer"
    assert "ann" not in tags.values()


def test_lightning_may_not_finish_the_run(tmp_path):
    run = start(tmp_path)
    run.logger.finalize("success")
    assert stored(run).info.status == "RUNNING"


@pytest.mark.parametrize(
    ("error", "status"), [(ValueError, "FAILED"), (KeyboardInterrupt, "KILLED"), (SystemExit, "KILLED")]
)
def test_an_exception_ends_the_run(tmp_path, error, status):
    run = start(tmp_path)
    with pytest.raises(error), run.ending_as("FAILED", interrupted="KILLED"):
        raise error
    assert stored(run).info.status == status


def test_goes_on_with_a_run(tmp_path):
    run = start(tmp_path)
    run.finish("KILLED")
    again = start(tmp_path, run_id=run.run_id, uri=run.uri)
    assert again.run_id == run.run_id
    assert stored(again).info.status == "RUNNING"
    assert len(again.client.search_runs(["1"])) == 1


def test_a_nested_run_knows_its_parent(tmp_path):
    run = start(tmp_path)
    nested = start(tmp_path, parent=run.run_id)
    assert stored(nested).data.tags["mlflow.parentRunId"] == run.run_id


def test_tags_of_the_user_are_kept(tmp_path):
    run = build_run(TrackingConfig(tags={"ward": "7"}), output_dir=tmp_path, name="n")
    assert stored(run).data.tags["ward"] == "7"


def test_system_metrics_are_watched_until_the_end(tmp_path):
    run = start(tmp_path)
    run.watch_system(resumed=False)
    run._monitor._shutdown_event.wait(2.5)
    run.finish("FINISHED")
    assert any(name.startswith("system/") for name in stored(run).data.metrics)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"run_id": "0" * 32}, "not found"),
        ({"uri": "nonsense://ann:secret@there"}, "nonsense://there cannot be used"),
        ({"uri": "sqlite:////proc/none/mlflow.db"}, "sqlite:///mlflow.db cannot be used: No such file"),
    ],
)
def test_a_store_that_cannot_be_used_is_refused_without_its_secrets(tmp_path, change, text):
    start(tmp_path)
    with pytest.raises(ConfigError, match=text) as caught:
        start(tmp_path, **change)
    assert "secret" not in str(caught.value)
    assert "tracking.uri" in str(caught.value)


def test_the_store_is_made_with_its_folder_and_holds_one_run(tmp_path):
    run = start(tmp_path / "runs" / "deeper")
    assert run.uri == f"sqlite:///{tmp_path}/runs/deeper/mlflow.db"
    assert (tmp_path / "runs/deeper/mlflow.db").is_file()
    experiment = run.client.get_experiment_by_name("e")
    (only,) = run.client.search_runs([experiment.experiment_id])
    assert (only.info.run_id, only.info.run_name, only.info.status) == (run.run_id, "n", "RUNNING")


def test_runs_share_an_experiment(tmp_path):
    runs = [start(tmp_path), start(tmp_path)]
    assert len({run.run_id for run in runs}) == 2
    assert len({stored(run).info.experiment_id for run in runs}) == 1


@pytest.mark.parametrize("status", ["FINISHED", "FAILED", "KILLED"])
def test_a_run_ends_as_it_is_told_to(tmp_path, status):
    run = start(tmp_path)
    run.finish(status)
    found = stored(run)
    assert found.info.status == status
    assert found.info.end_time >= found.info.start_time


def test_a_block_without_an_exception_leaves_the_run_running(tmp_path):
    run = start(tmp_path)
    with run.ending_as("FAILED", interrupted="KILLED"):
        pass
    assert stored(run).info.status == "RUNNING"


def test_metrics_keep_their_steps(tmp_path):
    run = start(tmp_path)
    for step, loss in enumerate([3.0, 2.0, 1.5]):
        run.log_metrics({"val/loss": loss}, step=step)
    history = run.client.get_metric_history(run.run_id, "val/loss")
    assert [(metric.step, metric.value) for metric in history] == [(0, 3.0), (1, 2.0), (2, 1.5)]


def test_parameters_that_are_logged_again_on_resume_are_no_fault(tmp_path):
    run = start(tmp_path)
    run.log_params({"seed": 0})
    again = start(tmp_path, run_id=run.run_id)
    again.log_params({"seed": 0, "resumed": True})
    assert run.params() == {"seed": "0", "resumed": "True"}


def test_classes_named_in_other_alphabets_keep_their_own_metrics(tmp_path):
    run = start(tmp_path)
    run.log_metrics({"test/auroc/肺炎": 0.7, "test/auroc/结核": 0.8})
    assert sorted(stored(run).data.metrics.values()) == [0.7, 0.8]


def test_a_class_name_that_looks_like_a_path_can_be_logged(tmp_path):
    start(tmp_path).log_metrics({"test/auroc//lead": 0.5})


def test_a_file_that_is_no_database_is_a_users_mistake(tmp_path):
    (tmp_path / "mlflow.db").write_bytes(b"not a database " * 100)
    with pytest.raises(ConfigError, match="cannot be used"):
        start(tmp_path)
