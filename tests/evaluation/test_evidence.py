import json

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from medxfer.evaluation.evidence import ORDER, results_table, summarise, write_metrics
from medxfer.evaluation.predictions import Predictions
from tests.evaluation.fixtures import NAMES, make_predictions


def thresholds(task: str) -> list[float]:
    return [0.5] * (1 if task == "binary" else len(NAMES[task]))


@pytest.mark.parametrize("task", list(NAMES))
def test_metrics_json_holds_every_metric_averaged_and_per_class(task, tmp_path):
    one = make_predictions(task)
    write_metrics(tmp_path / "metrics.json", {"test": summarise(one, thresholds=thresholds(task), resamples=80)})
    metrics = json.loads((tmp_path / "metrics.json").read_text())["test"]
    assert tuple(metrics) == ORDER
    classes = {"malignant"} if task == "binary" else set(NAMES[task])
    for name, entry in metrics.items():
        assert set(entry["per_class"]) == (set() if name == "accuracy" else classes)
        for part in (entry, *entry["per_class"].values()):
            assert part["low"] <= part["high"]
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.json"]


def test_binary_is_about_the_last_class():
    one = make_predictions("binary")
    value = summarise(one, thresholds=[0.5], resamples=60)["auroc"]["value"]
    assert value == pytest.approx(roc_auc_score(one.targets == 1, one.probs[:, 1]))


def test_what_is_not_defined_is_null_and_said(tmp_path):
    one = make_predictions("binary", size=20)
    only = Predictions(one.paths, one.split, np.zeros(20, dtype=int), one.probs, None, one.class_names, "binary")
    summary = summarise(only, thresholds=[0.5], resamples=60)
    assert summary["auroc"]["value"] is None
    write_metrics(tmp_path / "metrics.json", {"test": summary})
    assert "NaN" not in (tmp_path / "metrics.json").read_text()
    assert "not defined: a class is missing" in results_table(summary, title="t")


def test_the_table_has_a_line_per_metric_and_class():
    summary = summarise(make_predictions("multiclass"), thresholds=thresholds("multiclass"), resamples=60)
    table = results_table(summary, title="the title")
    assert table.startswith("the title\nmetric")
    for metric, entry in summary.items():
        assert f"{entry['value']:.3f}   {entry['low']:.3f} to {entry['high']:.3f}" in table, metric
    assert table.count("\n  a ") == 3
