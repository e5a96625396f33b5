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


def test_an_undefined_class_is_null_and_the_average_is_over_the_rest():
    one = make_predictions("multilabel")
    one.targets[:, 1] = np.where(np.isnan(one.targets[:, 1]), np.nan, 0)
    entry = summarise(one, thresholds=thresholds("multilabel"), resamples=60)["auroc"]
    assert entry["per_class"]["y"] == {"value": None, "low": None, "high": None}
    expected = [
        roc_auc_score(truth[~np.isnan(truth)], scores[~np.isnan(truth)])
        for truth, scores in zip(one.targets.T[[0, 2]], one.probs.T[[0, 2]], strict=True)
    ]
    assert entry["value"] == pytest.approx(np.mean(expected))


def test_too_few_resamples_are_said():
    summary = summarise(make_predictions("binary"), thresholds=[0.5], resamples=20)
    assert summary["auroc"]["low"] is summary["auroc"]["high"] is None
    assert results_table(summary, title="t").count("too few resamples") == len(ORDER)


def test_an_interval_is_over_patients_where_they_are_known():
    one = make_predictions("binary", size=40, patients=None)
    rows = np.repeat(np.arange(40), 4)
    settings = {"split": ["test"] * 160, "class_names": one.class_names, "task": "binary"}
    many = {"paths": [""] * 160, "targets": one.targets[rows], "probs": one.probs[rows], **settings}
    widths = []
    for groups in (rows, None):
        entry = summarise(Predictions(groups=groups, **many), thresholds=[0.5])["auroc"]
        widths.append(entry["high"] - entry["low"])
    assert widths[0] > 1.6 * widths[1]


def test_long_class_names_keep_the_columns_of_the_table():
    one = make_predictions("multiclass")
    named = Predictions(one.paths, one.split, one.targets, one.probs, None, ("n" * 60, "b", "c", "d"), "multiclass")
    lines = results_table(summarise(named, thresholds=thresholds("multiclass"), resamples=60), title="t").splitlines()
    assert {line.index(".") for line in lines[2:]} == {38}  # 34 for the name, 8 for the value
