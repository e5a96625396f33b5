import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from medxfer.evaluation.evidence import summarise
from medxfer.evaluation.plots import contact_sheet, draw_confusion, write_figures
from medxfer.evaluation.predictions import Predictions
from tests.evaluation.fixtures import NAMES, make_predictions


def thresholds(task: str) -> list[float]:
    return [0.5] * (1 if task == "binary" else len(NAMES[task]))


def inked(path) -> bool:
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
