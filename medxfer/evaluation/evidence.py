"""One split's predictions → metrics with intervals: metrics.json, and the table on the screen."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medxfer.evaluation.intervals import metrics_with_intervals
from medxfer.evaluation.predictions import Predictions

ORDER = (
    "auroc", "average_precision", "sensitivity", "specificity", "balanced_accuracy", "accuracy", "f1", "brier", "ece",
)  # fmt: skip

Summary = dict[str, dict[str, Any]]
"""metric → {value, low, high, per_class: {class: {value, low, high}}}; None where it is not defined."""


def summarise(predictions: Predictions, *, thresholds: list[float], resamples: int = 1000, seed: int = 0) -> Summary:
    """Compute every metric of a split with its 95 % interval over patients, or over images without patients.

    Binary: `per_class` holds the positive class. Otherwise the value is the average over classes.

    Args:
        predictions: of one split.
        thresholds: one per class (binary: of the positive class), fixed on the validation split.
        resamples: of the bootstrap.
        seed: of the bootstrap.
    """
    averaged, per_class = metrics_with_intervals(
        predictions.probs,
        predictions.targets,
        predictions.groups,
        task=predictions.task,
        thresholds=thresholds,
        resamples=resamples,
        seed=seed,
    )
    names = predictions.class_names[1:] if predictions.task == "binary" else predictions.class_names
    summary: Summary = {}
    for metric in ORDER:
        summary[metric] = _entry(averaged[metric])
        classes = zip(names, per_class.get(metric, []), strict=False)
        summary[metric]["per_class"] = {name: _entry(values) for name, values in classes}
    return summary


def _entry(values: tuple[float, float, float]) -> dict[str, Any]:
    return {
        name: value if math.isfinite(value) else None
        for name, value in zip(("value", "low", "high"), values, strict=True)
    }


def write_metrics(path: Path, summaries: Mapping[str, Summary]) -> None:
    """Write `{split: {metric: {value, low, high, per_class}}}` as JSON, at once."""
    temporary = path.with_name(f".{path.name}.writing")
    temporary.write_text(json.dumps(summaries, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def results_table(summary: Mapping[str, Any], *, title: str) -> str:
    """Write a split's metrics as plain text, per class too where there are several."""
    lines = [title, f"{'metric':<34}{'value':>8}   95 % interval"]
    for metric, entry in summary.items():
        lines.append(_line(metric, entry))
        if len(entry["per_class"]) > 1 and metric in ("auroc", "sensitivity", "specificity"):
            lines.extend(_line(f"  {name}", values) for name, values in entry["per_class"].items())
    return "\n".join(lines)


def _line(name: str, entry: Mapping[str, Any]) -> str:
    shown = name if len(name) <= 33 else name[:32] + "…"
    if entry["value"] is None:
        return f"{shown:<34}       –   not defined: a class is missing"
    interval = f"{entry['low']:.3f} to {entry['high']:.3f}" if entry["low"] is not None else "too few resamples"
    return f"{shown:<34}{entry['value']:>8.3f}   {interval}"
