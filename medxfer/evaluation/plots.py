"""Figures as PNG: confusion, ROC, precision-recall, reliability, learning curves, contact sheet."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from sklearn.calibration import calibration_curve
from sklearn.metrics import confusion_matrix, precision_recall_curve, roc_curve

from medxfer.evaluation.metrics import decisions, one_against_rest
from medxfer.evaluation.predictions import Predictions

# Okabe and Ito's colours, which differ for colour-blind readers too.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
LINES = ("-", "--", "-.", ":")
DPI = 120


def write_figures(
    folder: Path,
    predictions: Mapping[str, Predictions],
    *,
    thresholds: list[float],
    summaries: Mapping[str, Mapping[str, Any]],
    history: pd.DataFrame | None,
) -> list[Path]:
    """Draw every figure of every split, and the learning curves.

    Args:
        folder: where the PNG files go, named `SPLIT_WHAT.png`.
        predictions: of each split.
        thresholds: fixed on validation.
        summaries: of each split, for the numbers in the legends.
        history: one row per epoch; None: no learning curves.

    Returns:
        The files.
    """
    files = []
    for split, one in predictions.items():
        for name, draw in (
            ("confusion", draw_confusion), ("roc", draw_roc), ("precision_recall", draw_precision_recall),
            ("reliability", draw_reliability),
        ):  # fmt: skip
            figure = draw(one, thresholds=thresholds, summary=summaries[split], title=split)
            files.append(_save(figure, folder / f"{split}_{name}.png"))
    if history is not None:
        files.append(_save(draw_history(history), folder / "learning_curves.png"))
    return files


def _save(figure: Figure, path: Path) -> Path:
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=DPI)
    return path


def _columns(one: Predictions) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """Name, truth and score of each class against the rest that has positives and negatives."""
    scores, truth, known = one_against_rest(one.probs, one.targets, task=one.task)
    names = one.class_names[1:] if one.task == "binary" else one.class_names
    columns = [(name, truth[known[:, k], k], scores[known[:, k], k]) for k, name in enumerate(names)]
    return [(name, y, s) for name, y, s in columns if 0 < y.sum() < len(y)]


def _threshold(one: Predictions, name: str, thresholds: Sequence[float]) -> float:
    names = one.class_names[1:] if one.task == "binary" else one.class_names
    return thresholds[names.index(name)]


def _with_interval(entry: Mapping[str, Any]) -> str:
    if entry["low"] is None:
        return f"{entry['value']:.3f}"
    return f"{entry['value']:.3f} ({entry['low']:.3f} to {entry['high']:.3f})"


def _style(number: int) -> dict[str, Any]:
    return {"color": COLOURS[number % len(COLOURS)], "linestyle": LINES[number // len(COLOURS) % len(LINES)]}


def short_name(name: str, length: int = 28) -> str:
    """Cut a name, and keep matplotlib from reading it: $ begins mathematics, and a leading _ hides a legend's line."""
    cut = name if len(name) <= length else name[: length - 1] + "…"
    return ("\N{THIN SPACE}" + cut if cut.startswith("_") else cut).replace("$", r"\$")


def _square(one: Predictions, title: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(8.4, 7.2), layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(f"{title} split, {len(one)} images")
    axes.grid(alpha=0.3)
    return figure, axes


def draw_roc(one: Predictions, *, thresholds: list[float], summary: Mapping[str, Any], title: str) -> Figure:
    """Draw sensitivity over 1 − specificity of each class against the rest, with the point of the threshold."""
    figure, axes = _square(one, title)
    for number, (name, truth, scores) in enumerate(_columns(one)):
        fpr, tpr, _ = roc_curve(truth, scores)
        entry = summary["auroc"]["per_class"][name]
        axes.plot(fpr, tpr, label=f"{short_name(name)}: AUROC {_with_interval(entry)}", **_style(number))
        said = scores >= _threshold(one, name, thresholds)
        axes.plot([said[truth == 0].mean()], [said[truth == 1].mean()], "o", color=_style(number)["color"])
    axes.plot([0, 1], [0, 1], color="0.6", linewidth=1, label="chance")
    axes.plot([], [], "o", color="0.4", label="threshold fixed on validation")
    axes.set(xlabel="1 − specificity", ylabel="sensitivity", xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))
    axes.legend(loc="lower right")
    return figure


def draw_precision_recall(
    one: Predictions, *, thresholds: list[float], summary: Mapping[str, Any], title: str
) -> Figure:
    """Draw precision over sensitivity of each class against the rest, with its prevalence."""
    figure, axes = _square(one, title)
    for number, (name, truth, scores) in enumerate(_columns(one)):
        precision, recall, _ = precision_recall_curve(truth, scores)
        entry = summary["average_precision"]["per_class"][name]
        label = f"{short_name(name)}: average precision {_with_interval(entry)}"
        axes.step(recall, precision, where="post", label=label, **_style(number))
        axes.axhline(truth.mean(), color=_style(number)["color"], linewidth=1, alpha=0.4)
    axes.plot([], [], color="0.5", linewidth=1, alpha=0.6, label="prevalence: a guess's precision")
    axes.set(xlabel="sensitivity (recall)", ylabel="precision", xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))
    axes.legend(loc="lower left")
    return figure


def draw_reliability(one: Predictions, *, thresholds: list[float], summary: Mapping[str, Any], title: str) -> Figure:
    """Draw the share of positives over the predicted probability, above a histogram of the predictions."""
    figure = Figure(figsize=(8.4, 8.4), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    for number, (name, truth, scores) in enumerate(_columns(one)):
        found, said = calibration_curve(truth, scores, n_bins=10)
        error = _with_interval(summary["ece"]["per_class"][name])
        upper.plot(said, found, marker="o", label=f"{short_name(name)}: calibration error {error}", **_style(number))
        lower.hist(scores, bins=np.linspace(0, 1, 21), histtype="step", **_style(number))
    upper.plot([0, 1], [0, 1], color="0.6", linewidth=1, label="perfect")
    upper.set(title=f"{title} split, {len(one)} images", ylabel="share of positives", ylim=(-0.02, 1.02))
    upper.grid(alpha=0.3)
    upper.legend(loc="upper left")
    lower.set(xlabel="predicted probability", ylabel="images", xlim=(-0.01, 1.01))
    return figure


def draw_confusion(one: Predictions, *, thresholds: list[float], summary: Mapping[str, Any], title: str) -> Figure:
    """Draw what was decided against what is true: counts, and shares of each true class; a panel per label."""
    said = decisions(one.probs, task=one.task, thresholds=thresholds)
    if one.task != "multilabel":
        chosen = said.argmax(axis=1) if one.task == "multiclass" else said[:, 0].astype(int)
        panels = [
            (f"{title} split, {len(one)} images", one.targets, chosen, [short_name(n, 18) for n in one.class_names])
        ]
    else:
        known = ~np.isnan(one.targets)
        panels = [
            (short_name(name), one.targets[known[:, k], k].astype(int), said[known[:, k], k].astype(int), ["no", "yes"])
            for k, name in enumerate(one.class_names)
        ]
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    side = max(4.2, 2.2 + 0.9 * len(panels[0][3])) if len(panels) > 1 else max(7.2, 2.4 + 0.9 * len(panels[0][3]))
    figure = Figure(figsize=(side * columns, side * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.ravel()[len(panels) :]:
        axes.set_axis_off()
    for axes, (heading, truth, found, names) in zip(grid.ravel(), panels, strict=False):
        _confusion_panel(axes, confusion_matrix(truth, found, labels=range(len(names))), names)
        axes.set_title(heading)
    return figure


def _confusion_panel(axes: Axes, counts: np.ndarray, names: Sequence[str]) -> None:
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for row, column in np.ndindex(*counts.shape):
        axes.text(
            column,
            row,
            f"{counts[row, column]}\n{shares[row, column]:.0%}",
            ha="center",
            va="center",
            color="white" if shares[row, column] > 0.5 else "black",
        )
    turned = {"rotation": 45, "ha": "right"} if len(names) > 3 else {}
    axes.set_xticks(range(len(names)), names, **turned)
    axes.set_yticks(range(len(names)), names)
    axes.set(xlabel="decided", ylabel="true")


def draw_history(history: pd.DataFrame) -> Figure:
    """Draw losses and validation metrics over the epochs; a line marks where fine-tuning began."""
    figure = Figure(figsize=(11, 5.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    epochs = history["epoch"] + 1
    for axes, names, label in (
        (left, ("train/loss", "val/loss"), "loss"),
        (right, ("val/auroc", "val/average_precision", "val/balanced_accuracy"), "validation metric"),
    ):
        for number, name in enumerate(name for name in names if name in history):
            axes.plot(epochs, history[name], marker="o", markersize=4, label=name, **_style(number))
        tuned = history.loc[history["stage"] == "finetune", "epoch"]
        if len(tuned) and tuned.iloc[0] > history["epoch"].iloc[0]:
            axes.axvline(tuned.iloc[0] + 0.5, color="0.5", linewidth=1, linestyle=":", label="fine-tuning begins")
        axes.set(xlabel="epoch", ylabel=label)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2)  # below: curves go anywhere
    return figure


def contact_sheet(images: np.ndarray, titles: Sequence[str], path: Path) -> Path:
    """Draw pictures side by side.

    Args:
        images: uint8 (N, H, W, C) in 0..255, C = 1 or 3.
        titles: of each.
        path: the PNG.
    """
    columns = min(4, len(images))
    rows = -(-len(images) // columns)
    figure = Figure(figsize=(2.2 * columns, 2.4 * rows), layout="constrained")
    for axes, number in zip(figure.subplots(rows, columns, squeeze=False).ravel(), range(rows * columns), strict=True):
        axes.set_axis_off()
        if number < len(images):
            image = images[number]
            axes.imshow(image[..., 0] if image.shape[-1] == 1 else image, cmap="gray", vmin=0, vmax=255)
            axes.set_title(short_name(titles[number], 22), fontsize=9)
    return _save(figure, path)
