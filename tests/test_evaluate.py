"""A finished run on other images, through the real entry point."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from mlflow import MlflowClient
from sklearn.metrics import roc_auc_score

from medxfer import evaluate, predict
from medxfer.data.phantoms import write_xray_phantoms


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of phantoms that no run has seen."""
    return write_xray_phantoms(tmp_path_factory.mktemp("others") / "hospital", patients=14, size_px=96, seed=5)


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run, so that tests do not see each other's evaluations."""
    return Path(shutil.copytree(finished, tmp_path / "runs" / "run"))


def command(run: Path, table: Path, *more: str) -> list[str]:
    return ["--run", str(run), "--data.source", str(table), "--data.num_workers=0", "--accelerator=cpu", *more]


def test_writes_the_same_files_as_a_training(run, others, capsys):
    assert evaluate.main(command(run, others)) == 0
    place = run / "evaluations" / "labels"
    names = {p.relative_to(place).as_posix() for p in place.rglob("*") if p.is_file()}
    kinds = ("confusion", "roc", "precision_recall", "reliability")
    assert names == {"metrics.json", "predictions.csv", *(f"figures/test_{kind}.png" for kind in kinds)}
    predictions = pd.read_csv(place / "predictions.csv")
    assert len(predictions) == len(pd.read_csv(others))
    assert set(predictions["split"]) == {"test"}
    metrics = json.loads((place / "metrics.json").read_text())
    truth = predictions["target"] == "opacity"
    assert metrics["test"]["auroc"]["value"] == pytest.approx(roc_auc_score(truth, predictions["prob_opacity"]))
    decided = predictions["prob_opacity"] >= json.loads((run / "run.json").read_text())["thresholds"][0]
    assert metrics["test"]["sensitivity"]["value"] == pytest.approx(decided[truth].mean())
    assert "95 % intervals over patients" in capsys.readouterr().out


def test_predict_and_evaluate_agree(run, others, tmp_path):
    assert evaluate.main(command(run, others)) == 0
    evaluated = pd.read_csv(run / "evaluations" / "labels" / "predictions.csv")
    files = [str(others.parent / path) for path in evaluated["path"]]
    output = tmp_path / "p.csv"
    more = ("--batch_size=1", "--num_workers=0", "--accelerator=cpu")
    assert predict.main(["--run", str(run), *files, "--output", str(output), *more]) == 0
    found = pd.read_csv(output)
    assert (found["prob_opacity"] - evaluated["prob_opacity"]).abs().max() <= 1e-5  # float32 in batches of another size


def test_the_mlflow_run_is_nested_in_the_trainings(run, others):
    assert evaluate.main(command(run, others, "--name", "elsewhere")) == 0
    record = json.loads((run / "run.json").read_text())
    client = MlflowClient(record["tracking_uri"])
    query = f"tags.`mlflow.parentRunId` = '{record['mlflow_run_id']}' and tags.evaluation = 'elsewhere'"
    (nested,) = client.search_runs([e.experiment_id for e in client.search_experiments()], filter_string=query)
    assert nested.info.status == "FINISHED"
    assert "test/auroc" in nested.data.metrics
    assert "hospital" not in str(nested.to_dictionary())


def test_images_of_the_training_are_refused(run, xrays, tmp_path, capsys):
    assert evaluate.main(command(run, xrays)) == 2
    err = capsys.readouterr().err
    assert "used to train this run or to choose its best epoch and threshold" in err
    assert not (run / "evaluations").exists()
    split = pd.read_csv(run / "split.csv").set_index("path")["split"]
    table = pd.read_csv(xrays)
    table[table["path"].map(split) == "test"].to_csv(xrays.parent / "test_only.csv", index=False)
    assert evaluate.main(command(run, xrays.parent / "test_only.csv")) == 0


def test_the_same_image_under_another_name_is_refused(run, xrays, others, tmp_path, capsys):
    split = pd.read_csv(run / "split.csv")
    known = split[split["split"] == "train"]["path"].iloc[0]
    shutil.copytree(others.parent, tmp_path / "copy")
    shutil.copy(xrays.parent / known, tmp_path / "copy" / f"images/renamed{Path(known).suffix}")
    again = pd.DataFrame({"path": [f"images/renamed{Path(known).suffix}"], "label": ["clear"], "patient_id": ["x"]})
    rows = pd.concat([pd.read_csv(others), again])
    rows.to_csv(tmp_path / "copy/labels.csv", index=False)
    assert evaluate.main(command(run, tmp_path / "copy/labels.csv")) == 2
    assert f"images/renamed{Path(known).suffix}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda rows: rows.assign(label=rows["label"].replace("opacity", "tumour")), "but label also holds 'tumour'"),
        (lambda rows: rows.drop(columns="label"), "there is no column 'label'"),
        (lambda rows: rows.assign(path="images/none.png"), "images do not exist"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(run, others, change, text, capsys):
    change(pd.read_csv(others)).to_csv(others.parent / "changed.csv", index=False)
    assert evaluate.main(command(run, others.parent / "changed.csv")) == 2
    assert text in capsys.readouterr().err


def test_mistakes_on_the_command_line(run, others, tmp_path, capsys):
    assert evaluate.main([]) == 2
    assert "--run RUN_FOLDER and --data.source CSV_OR_FOLDER are both needed" in capsys.readouterr().err
    assert evaluate.main(command(tmp_path, others)) == 2
    assert "is not the folder of a run" in capsys.readouterr().err
    assert evaluate.main(command(run, others)) == 0
    assert evaluate.main(command(run, others)) == 2
    assert "choose another --name" in capsys.readouterr().err


def test_smoke_in_a_process_of_its_own(run, others):
    done = subprocess.run(
        [sys.executable, "-m", "medxfer.evaluate", *command(run, others)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert "auroc" in done.stdout
