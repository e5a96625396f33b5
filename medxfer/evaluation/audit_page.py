"""The audit as one self-contained page: findings with the images side by side, classes, confounders, greys."""

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from medxfer import __version__
from medxfer.data.audit import NAMED, Audit, Case, Finding
from medxfer.data.collection import Collection
from medxfer.data.splits import split_rows
from medxfer.evaluation.plots import COLOURS, LINES, short_name

THUMBNAIL_PX = 150
SHOWN = 6
"""Cases of a finding that are open when the page is; those behind them follow at a click."""
PICTURED = 60
"""Cases of a finding that are shown with their images."""
SAMPLES = 6
"""Images of each class."""
LISTED = 1000
"""Cases of a finding that are listed at all; audit.json has every one."""
HISTOGRAM_IMAGES = 500


def audit_page(found: Audit, data: Collection, *, title: str, seed: int) -> str:
    """Write the page.

    Args:
        found: the audit.
        data: what was audited.
        title: what the source is called.
        seed: of the choice of images to show.

    Returns:
        HTML that refers to nothing outside of itself. Every text in it is escaped.
    """
    manifest = data.manifest
    environment = Environment(loader=PackageLoader("medxfer.evaluation"), autoescape=True, trim_blocks=True)
    return environment.get_template("audit.html").render(
        title=title,
        version=__version__,
        images=f"{len(manifest):,}",
        patients=f"{len(set(manifest.patients)):,}" if manifest.patients is not None else None,
        task=manifest.task,
        classes=manifest.class_names,
        fatal=found.fatal,
        verdict=verdict(found),
        findings=[_finding(finding, data) for finding in found.findings],
        shown=SHOWN,
        table=split_rows(data.splits, manifest.targets, manifest.patients, class_names=manifest.class_names),
        predictors_plot=_predictors(found) if found.predictors else None,
        plots=[
            {"source": _sizes(found, data), "caption": "longer side of the images"},
            {"source": _greys(data), "caption": "greys of the images"},
        ],
        samples=_samples(data, seed),
    )


def verdict(found: Audit) -> str:
    """Say in one line whether the data can be trained on."""
    warnings = f"{len(found.warnings)} warning{'' if len(found.warnings) == 1 else 's'}"
    if not found.fatal:
        return f"Fit for training; {warnings}"
    fatal = f"{len(found.fatal)} finding{'' if len(found.fatal) == 1 else 's'}"
    return f"Not fit for training: a result would be false, for {fatal}; {warnings} besides"


def _finding(finding: Finding, data: Collection) -> dict[str, Any]:
    cases = [
        {"text": case.text, "thumbnails": _thumbnails(case, data) if number < PICTURED else []}
        for number, case in enumerate(finding.cases[:LISTED])
    ]
    return {"severity": finding.severity, "text": finding.text, "cases": cases}


def _thumbnails(case: Case, data: Collection) -> list[dict[str, str]]:
    return [_thumbnail(row, data) for row in case.named or case.rows[:NAMED]]


def _thumbnail(row: int, data: Collection) -> dict[str, str]:
    content = data.pictures.content(row)
    picture = Image.fromarray(content[..., 0] if content.shape[2] == 1 else content)
    picture.thumbnail((2 * THUMBNAIL_PX, 2 * THUMBNAIL_PX))
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=80)
    caption = f"{Path(data.manifest.paths[row]).name}: {data.splits[row]}, {data.manifest.label_text(row)}"
    return {"source": _uri(file.getvalue(), "image/jpeg"), "caption": caption}


def _samples(data: Collection, seed: int) -> list[dict[str, Any]]:
    manifest = data.manifest
    rng = np.random.default_rng(seed)
    samples = []
    for k, name in enumerate(manifest.class_names):
        rows = np.flatnonzero(manifest.targets[:, k] == 1 if manifest.targets.ndim == 2 else manifest.targets == k)
        chosen = np.sort(rng.permutation(rows)[:SAMPLES])
        samples.append({"name": name, "thumbnails": [_thumbnail(int(row), data) for row in chosen]})
    return samples


def _predictors(found: Audit) -> str:
    ordered = found.predictors[::-1]
    figure = Figure(figsize=(6.4, 0.9 + 0.32 * len(ordered)), layout="constrained")
    axes = figure.add_subplot()
    values = np.array([[one.auroc, one.low, one.high] for one in ordered])
    places = np.arange(len(ordered))
    axes.hlines(places, values[:, 1], values[:, 2], color=COLOURS[0], linewidth=2)
    axes.plot(values[:, 0], places, "o", color=COLOURS[0])
    axes.axvline(0.5, color="#999999", linewidth=1, linestyle="--")
    axes.set_yticks(places, [short_name(one.name, 40) for one in ordered])
    axes.set_xlabel("AUROC and 95 % interval")
    axes.set_xlim(min(0.4, float(np.nanmin(values))), 1.01)
    return _drawn(figure)


def _sizes(found: Audit, data: Collection) -> str:
    sides = found.looks[["width", "height"]].max(axis=1).to_numpy()
    figure = Figure(figsize=(6.4, 3.2), layout="constrained")
    axes = figure.add_subplot()
    bins = np.linspace(sides.min() - 0.5, sides.max() + 0.5, 41 if len(set(sides)) > 1 else 2)
    for k, name, rows in _by_class(data):
        axes.hist(
            sides[rows],
            bins=bins.tolist(),
            histtype="step",
            label=short_name(name),
            color=COLOURS[k % len(COLOURS)],
            linewidth=1.5,
        )
    axes.set_xlabel("longer side (px)")
    axes.set_ylabel("images")
    axes.legend(frameon=False)
    return _drawn(figure)


def _greys(data: Collection) -> str:
    figure = Figure(figsize=(6.4, 3.2), layout="constrained")
    axes = figure.add_subplot()
    for k, name, rows in _by_class(data):
        chosen = rows[np.linspace(0, len(rows) - 1, min(HISTOGRAM_IMAGES, len(rows))).astype(int)]
        share = np.zeros(64)
        for row in chosen:
            grey = data.pictures.content(int(row)).mean(axis=2)
            share += np.histogram(grey, bins=64, range=(0, 256))[0] / grey.size / len(chosen)
        line = LINES[k // len(COLOURS) % len(LINES)]
        axes.plot(np.arange(64) * 4 + 2, share, label=short_name(name), color=COLOURS[k % len(COLOURS)], linestyle=line)
    axes.set_xlabel("grey (0 to 255, without padding)")
    axes.set_ylabel("mean share of an image")
    axes.legend(frameon=False)
    return _drawn(figure)


def _by_class(data: Collection) -> Sequence[tuple[int, str, np.ndarray]]:
    targets = data.manifest.targets
    rows = [
        np.flatnonzero(targets[:, k] == 1 if targets.ndim == 2 else targets == k)
        for k in range(data.manifest.num_classes)
    ]
    return [(k, name, rows[k]) for k, name in enumerate(data.manifest.class_names) if len(rows[k])]


def _drawn(figure: Figure) -> str:
    FigureCanvasAgg(figure)
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=140)
    return _uri(file.getvalue(), "image/png")


def _uri(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
