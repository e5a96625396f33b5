from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.metrics import roc_curve

from medxfer.evaluation.evidence import summarise
from medxfer.evaluation.plots import contact_sheet, draw_confusion, draw_history, draw_roc, write_figures
from medxfer.evaluation.predictions import Predictions
from tests.evaluation.fixtures import NAMES, make_predictions


def thresholds(task: str) -> list[float]:
    return [0.5] * (1 if task == "binary" else len(NAMES[task]))


def inked(path: Path) -> bool:
    return np.asarray(Image.open(path).convert("L")).std() > 5


@pytest.mark.parametrize("task", list(NAMES))
def test_every_figure_is_drawn(task, tmp_path):
    one = make_predictions(task)
    summary = summarise(one, thresholds=thresholds(task), resamples=60)
    history = pd.DataFrame({"epoch": [0, 1, 2], "stage": ["head", "finetune", "finetune"]})
    history = history.assign(**{"train/loss": [3, 2, 1], "val/loss": [3.0, 2.5, 2.0], "val/auroc": [0.5, 0.6, 0.7]})
    files = write_figures(
        tmp_path, {"test": one}, thresholds=thresholds(task), summaries={"test": summary}, history=history
    )
    kinds = ("confusion", "roc", "precision_recall", "reliability")
    assert sorted(f.name for f in files) == sorted([*(f"test_{kind}.png" for kind in kinds), "learning_curves.png"])
    assert all(inked(file) for file in files)
    assert all(file.read_bytes().startswith(b"\x89PNG\r\n") for file in files)
    assert plt.get_fignums() == []


@pytest.mark.parametrize("task", list(NAMES))
def test_a_split_that_lacks_a_class_is_drawn_too(task, tmp_path):
    one = make_predictions(task, size=12)
    targets = np.zeros_like(one.targets)
    lacking = Predictions(one.paths, one.split, targets, one.probs, None, one.class_names, task)
    summary = summarise(lacking, thresholds=thresholds(task), resamples=60)
    files = write_figures(
        tmp_path, {"val": lacking}, thresholds=thresholds(task), summaries={"val": summary}, history=None
    )
    assert len(files) == 4


def test_the_confusion_matrix_counts_decisions_at_the_threshold():
    one = make_predictions("binary")
    figure = draw_confusion(one, thresholds=[0.7], summary={}, title="test")
    said = one.probs[:, 1] >= 0.7
    expected = {
        int(((one.targets == truth) & (said == positive)).sum()) for truth in (0, 1) for positive in (False, True)
    }
    texts = " ".join(text.get_text() for axes in figure.axes for text in axes.texts)
    assert all(str(count) in texts for count in expected)


@pytest.mark.parametrize("shape", [(5, 64, 64, 1), (16, 40, 40, 3)])
def test_a_contact_sheet_shows_the_pictures(shape, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, size=shape, dtype=np.uint8)
    assert inked(contact_sheet(images, ["class"] * shape[0], tmp_path / "sheet.png"))
    assert plt.get_fignums() == []


def test_the_roc_curve_is_scikit_learns_with_the_point_of_the_threshold():
    one = make_predictions("binary")
    summary = summarise(one, thresholds=[0.3], resamples=60)
    curve, point, *_ = draw_roc(one, thresholds=[0.3], summary=summary, title="test").axes[0].lines
    false, true, _ = roc_curve(one.targets, one.probs[:, 1])
    np.testing.assert_allclose(curve.get_xydata(), np.stack([false, true], 1))
    said = one.probs[:, 1] >= 0.3
    np.testing.assert_allclose(point.get_xydata(), [[said[one.targets == 0].mean(), said[one.targets == 1].mean()]])
    assert f"AUROC {summary['auroc']['value']:.3f} (" in curve.get_label()


def test_more_classes_than_colours_still_have_lines_of_their_own():
    rng = np.random.default_rng(0)
    names = tuple(f"class {k} with a name that is too long for a legend" for k in range(12))
    probs = rng.dirichlet(np.ones(12), size=120)
    one = replace(make_predictions("multiclass"), targets=np.arange(120) % 12, probs=probs, class_names=names)
    summary = summarise(one, thresholds=[0.1] * 12, resamples=60)
    lines = draw_roc(one, thresholds=[0.1] * 12, summary=summary, title="test").axes[0].lines[:24:2]
    assert len({(line.get_color(), line.get_linestyle()) for line in lines}) == 12


@pytest.mark.parametrize(("stages", "marks"), [(["head", "head", "finetune"], 1), (["finetune"] * 3, 0)])
def test_learning_curves_mark_where_fine_tuning_begins(stages, marks):
    history = pd.DataFrame({"epoch": [0, 1, 2], "stage": stages, "train/loss": [3, 2, 1], "val/auroc": [0.5, 0.6, 0.7]})
    left, right = draw_history(history).axes
    for axes in (left, right):
        dotted = [line for line in axes.lines if line.get_linestyle() == ":"]
        assert [line.get_xdata()[0] for line in dotted] == [2.5] * marks
    np.testing.assert_array_equal(left.lines[0].get_xydata(), [[1, 3], [2, 2], [3, 1]])


def test_a_class_whose_name_begins_with_an_underscore_is_in_the_legend():
    one = replace(make_predictions("binary"), class_names=("benign", "_malignant"))
    figure = draw_roc(one, thresholds=[0.5], summary=summarise(one, thresholds=[0.5], resamples=60), title="test")
    assert any("_malignant" in text.get_text() for text in figure.axes[0].get_legend().get_texts())


def test_dollar_signs_in_a_class_name_are_only_dollar_signs(tmp_path):
    images = np.zeros((1, 8, 8, 1), dtype=np.uint8)
    assert contact_sheet(images, [r"$\frac$"], tmp_path / "sheet.png").is_file()
