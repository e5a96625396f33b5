"""What would make a result false, found before anything is trained: leaks, contradictions, confounders, odd images."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import pandas as pd

from medxfer.data.appearance import appearance, likeness
from medxfer.data.cache import remembered
from medxfer.data.collection import Collection
from medxfer.data.confounders import metadata_columns, predict_from_metadata
from medxfer.data.manifest import sets_of
from medxfer.errors import DataError, listed

VERSION = 1
"""Counts changes of how columns are judged; what was judged before is then not used."""

FATAL, WARNING = "fatal", "warning"

Interval = tuple[float, float, float]
"""Value, low and high end."""

Auroc = Callable[[np.ndarray, np.ndarray, np.ndarray], Interval]
"""Probabilities (N, C), targets and groups (N,) → AUROC with its 95 % interval."""

PREDICTS = 0.55
"""A column with at least this AUROC is named, if chance alone hardly explains it."""

SAYS_THE_LABEL = 0.98
"""AUROC of a column that is hardly anything else."""

SURE = 1.68
"""Half-width of a 99.9 % interval in those of a 95 % interval: a dozen columns are judged at once."""

IMBALANCE = 10.0
"""Ratio of the largest to the smallest class that is named."""

FEW_PATIENTS = 10
"""With fewer patients of a class in the test split its sensitivity is hardly known."""

NO_CONTRAST = 3.0
"""Standard deviation, of 0..255, below which a picture shows nothing."""

ALIKE, NEGATIVE = 0.5, -0.4
"""Correlation with the others, in the large: of most films of one kind at least; of a negative among them at most."""

GREY_MODES = ("1", "L", "I", "F", "MONOCHROME")
"""How modes of one grey channel begin, whatever its depth."""

NAMED = 6
"""Images of a case that its line names: one picture may have any number of copies."""

WIDE_BORDER = 0.1
"""Share of a picture's area in margins of one colour that is named."""


@dataclass(frozen=True)
class Case:
    """One instance of a finding.

    Attributes:
        rows: all images it is about, as rows of the manifest.
        text: a line about it.
        named: the few of them that the line names.
    """

    rows: tuple[int, ...]
    text: str
    named: tuple[int, ...] = ()


@dataclass(frozen=True)
class Finding:
    """What one check found.

    Attributes:
        check: its name.
        severity: fatal or warning.
        text: what was found and what to do.
        cases: each instance.
    """

    check: str
    severity: str
    text: str
    cases: list[Case] = field(default_factory=list)


@dataclass(frozen=True)
class Predictor:
    """How well one column, or all together, predict the label without the image: AUROC and its 95 % interval."""

    name: str
    auroc: float
    low: float
    high: float


@dataclass(frozen=True)
class Audit:
    """Everything the audit found.

    Attributes:
        findings: fatal ones first.
        predictors: best first.
        looks: what `appearance` says, one row per image.
    """

    findings: list[Finding]
    predictors: list[Predictor]
    looks: pd.DataFrame

    @property
    def fatal(self) -> list[Finding]:
        """Findings that make a result false."""
        return [finding for finding in self.findings if finding.severity == FATAL]

    @property
    def warnings(self) -> list[Finding]:
        """Findings that a user should know."""
        return [finding for finding in self.findings if finding.severity == WARNING]

    def to_dict(self, data: Collection) -> dict[str, Any]:
        """Return plain types for audit.json; images are named by their paths."""
        paths = data.manifest.paths
        return {
            "images": len(data.manifest),
            "patients": len(set(data.manifest.patients)) if data.manifest.patients is not None else None,
            "classes": list(data.manifest.class_names),
            "splits": dict(Counter(data.splits.tolist())),
            "fit_for_training": not self.fatal,
            "findings": [
                {
                    "check": finding.check,
                    "severity": finding.severity,
                    "text": finding.text,
                    "cases": [
                        {"images": [paths[row] for row in case.rows], "text": case.text} for case in finding.cases
                    ],
                }
                for finding in self.findings
            ],
            "predictors": [asdict(predictor) for predictor in self.predictors],
        }


def audit(data: Collection, *, folder: Path, near_duplicates: str, unreadable: str, seed: int, auroc: Auroc) -> Audit:
    """Look for everything that would make a result on these data false.

    Args:
        data: labels, pictures and split.
        folder: where results that take long are kept.
        near_duplicates: error, warn or off.
        unreadable: error, or skip.
        seed: of the models that predict the label from other columns.
        auroc: how those are judged.
    """
    looks = appearance(data.manifest, data.pictures)
    predictors = _predictors(data, looks, folder=folder, seed=seed, auroc=auroc)
    findings = [
        *_unreadable(data, unreadable),
        *_groups_across(data),
        *_identical(data),
        *_similar(data, FATAL if near_duplicates == "error" else WARNING),
        *_classes(data),
        *_named_predictors(predictors),
        *_odd_images(data, looks),
        *_negatives(data),
        *_mixed(looks),
    ]
    findings.sort(key=lambda finding: finding.severity != FATAL)
    return Audit(findings, predictors, looks)


def refuse_fatal(found: Audit, *, allow_leaks: bool, source: str) -> None:
    """Refuse data on which a result would be false.

    Raises:
        DataError: with each case of each fatal finding.
    """
    if not found.fatal or allow_leaks:
        return
    lines = [line for finding in found.fatal for line in (finding.text, *(f"  {case.text}" for case in finding.cases))]
    raise DataError(
        listed(f"a result on {source} would be false:", lines, limit=50)
        + "\nsee the images side by side: python -m medxfer.check with the same settings"
        + "\ncorrect the table; or train in spite of it, which the run will say: --data.allow_leaks true"
    )


def _unreadable(data: Collection, choice: str) -> Iterator[Finding]:
    if data.skipped:
        cases = [Case((), f"{path}: {reason}") for path, reason in data.skipped]
        number = f"{len(cases)} of {len(data.manifest) + len(cases)} images cannot be read"
        if choice == "skip":
            yield Finding("unreadable", WARNING, f"{number} and are left out (data.on_unreadable: skip)", cases)
        else:
            advice = "repair or remove them, or go on without them: --data.on_unreadable skip"
            yield Finding("unreadable", FATAL, f"{number}: {advice}", cases)


def _groups_across(data: Collection) -> Iterator[Finding]:
    manifest = data.manifest
    columns = list(manifest.more_groups.items())
    if manifest.patients is not None:
        columns.insert(0, ("patient", manifest.patients))
    else:
        text = "there is no patient column, so the same patient on two sides of the split cannot be excluded"
        yield Finding("no_patients", WARNING, text)
    for name, values in columns:
        sets = [rows for rows in sets_of(values) if values[rows[0]] and len(set(data.splits[rows])) > 1]
        if sets:
            text = f"{_count(len(sets), name)} on more than one side of the split: put all images of each on one"
            yield Finding("leak", FATAL, text, [_case(data, rows) for rows in sets])


def _identical(data: Collection) -> Iterator[Finding]:
    manifest, sets = data.manifest, data.duplicates.identical
    across = [rows for rows in sets if len(set(data.splits[rows])) > 1]
    if across:
        text = (
            f"{_count(len(across), 'image')} with copies (identical pixels) on another side of the split: remove them"
        )
        yield Finding("identical", FATAL, text, [_case(data, rows) for rows in across])
    contradicting = [rows for rows in sets if _contradict(manifest.targets[rows])]
    if contradicting:
        text = f"{_count(len(contradicting), 'image')} with copies (identical pixels) under another label: correct it"
        yield Finding("two_labels", FATAL, text, [_case(data, rows, labels=True) for rows in contradicting])
    patients = manifest.patients
    strangers = [rows for rows in sets if patients is not None and len(set(patients[rows])) > 1]
    if strangers:
        text = f"{_count(len(strangers), 'image')} with copies (identical pixels) under another patient: check the ids"
        yield Finding("two_patients", WARNING, text, [_case(data, rows) for rows in strangers])
    seen = {int(rows[0]) for rows in [*across, *contradicting, *strangers]}
    rest = [rows for rows in sets if int(rows[0]) not in seen]
    if rest:
        text = f"{_count(len(rest), 'image')} with copies (identical pixels) on the same side of the split"
        yield Finding("repeated", WARNING, text, [_case(data, rows) for rows in rest])


def _similar(data: Collection, severity: str) -> Iterator[Finding]:
    across, within, contradicting = [], [], []
    for pair in data.duplicates.similar:
        rows = np.array([pair.first, pair.second])
        note = f"{pair.change}, " if pair.change != "none" else ""
        case = _case(data, rows, note=f"{note}correlation {pair.similarity:.2f}")
        (across if len(set(data.splits[rows])) > 1 else within).append(case)
        if _contradict(data.manifest.targets[rows]):
            contradicting.append(_case(data, rows, labels=True, note=f"{note}correlation {pair.similarity:.2f}"))
    if across:
        text = f"{_count(len(across), 'pair')} of nearly identical images on two sides of the split: remove one of each"
        yield Finding("near_duplicates", severity, text, across)
    if within:
        text = f"{_count(len(within), 'pair')} of nearly identical images on the same side of the split"
        yield Finding("near_duplicates_together", WARNING, text, within)
    if contradicting:
        text = f"{_count(len(contradicting), 'pair')} of nearly identical images with different labels: is that right?"
        yield Finding("near_two_labels", WARNING, text, contradicting)  # follow-up films may differ in the finding


def _contradict(targets: np.ndarray) -> bool:
    """Return whether images (n,) or (n, K) have different labels; an unknown one contradicts none."""
    columns = targets[:, np.newaxis] if targets.ndim == 1 else targets
    return any(len(set(column[~np.isnan(column)].tolist())) > 1 for column in columns.T.astype(float))


def _classes(data: Collection) -> Iterator[Finding]:
    manifest = data.manifest
    one_hot = (
        manifest.targets == 1 if manifest.targets.ndim == 2 else np.eye(manifest.num_classes)[manifest.targets] == 1
    )
    images = one_hot.sum(axis=0)
    if manifest.task == "multilabel":
        images = np.concatenate([images, (manifest.targets == 0).sum(axis=0)])
    ratio = float(images.max() / max(1, images.min()))
    if ratio >= IMBALANCE:
        advice = "look at average precision too, and consider loss.class_weights: balanced"
        yield Finding(
            "imbalance", WARNING, f"the largest class has {ratio:.0f} times the images of the smallest: {advice}"
        )
    test = data.splits == "test"
    unit = "patients" if manifest.patients is not None else "images"
    groups = manifest.groups()
    few = [
        Case((), f"{name}: {number} {unit}")
        for name, chosen in zip(manifest.class_names, one_hot.T, strict=True)
        if (number := len(set(groups[chosen & test]))) < FEW_PATIENTS
    ]
    if few:
        text = f"fewer than {FEW_PATIENTS} {unit} of a class in the test split: its intervals will be wide"
        yield Finding("tiny_classes", WARNING, text, few)


def _predictors(data: Collection, looks: pd.DataFrame, *, folder: Path, seed: int, auroc: Auroc) -> list[Predictor]:
    manifest = data.manifest
    given = manifest.metadata[metadata_columns(manifest.metadata, used=())]
    hidden = [name for name in looks if name in given]
    if _are_class_folders(data):
        hidden.append("source folder")  # it is the label, and would hide all others
    table = pd.concat([looks.drop(columns=hidden), given], axis=1)
    groups = manifest.groups()

    def judge() -> list[dict[str, Any]]:
        probs = predict_from_metadata(table, manifest.targets, groups, task=manifest.task, seed=seed)
        found = [Predictor(name, *auroc(one, manifest.targets, groups)) for name, one in probs.items()]
        return [asdict(predictor) for predictor in found if np.isfinite(predictor.auroc)]

    key = [manifest.digest(), data.pictures.settings_name(), data.pictures.content_digest(), str(seed)]
    found = remembered(
        folder, "predictors", [str(VERSION), *key, table.to_csv(index=False), "\x1f".join(groups)], judge
    )
    return sorted((Predictor(**values) for values in found), key=lambda predictor: -predictor.auroc)


def _are_class_folders(data: Collection) -> bool:
    """Return whether every image lies in a folder with its label's name."""
    manifest = data.manifest
    names = (PurePath(path).parent.name.casefold() for path in manifest.paths)
    return all(name == manifest.label_text(row).casefold() for row, name in enumerate(names))


def _named_predictors(predictors: Sequence[Predictor]) -> Iterator[Finding]:
    named = [one for one in predictors if one.auroc >= PREDICTS and one.auroc - SURE * (one.auroc - one.low) > 0.5]
    if named:
        text = (
            "the label can be predicted without recognising anything in the images, so a network may learn that "
            "instead of the disease: compare its AUROC with these, and balance the classes over them if you can"
        )
        cases = [Case((), _judged(one)) for one in named]
        yield Finding("confounders", WARNING, text, cases)


def _judged(one: Predictor) -> str:
    hint = "; does it say the label in other words?" if one.auroc >= SAYS_THE_LABEL else ""
    return f"{one.name}: AUROC {one.auroc:.3f} ({one.low:.3f} to {one.high:.3f}){hint}"


def _odd_images(data: Collection, looks: pd.DataFrame) -> Iterator[Finding]:
    empty = np.flatnonzero(looks["contrast"] < NO_CONTRAST)
    if len(empty):
        text = f"{_count(len(empty), 'image')} nearly of one colour, so that nothing can be seen: remove them"
        yield Finding("empty", WARNING, text, [_case(data, [row]) for row in empty])
    bordered = np.flatnonzero((looks["border"] > WIDE_BORDER) & (looks["contrast"] >= NO_CONTRAST))
    if len(bordered):
        text = f"{_count(len(bordered), 'image')} with borders of one colour on more than {WIDE_BORDER:.0%} of the area"
        yield Finding(
            "borders", WARNING, text, [_case(data, [row], note=f"{looks['border'][row]:.0%}") for row in bordered]
        )


def _negatives(data: Collection) -> Iterator[Finding]:
    if data.pictures[0].shape[2] != 1:
        return
    alike = likeness(data.pictures)
    rows = np.flatnonzero(alike < NEGATIVE) if np.median(alike) > ALIKE else []
    if len(rows):
        text = f"{_count(len(rows), 'film')} like a negative of the others: what is dense must be bright on all of them"
        yield Finding("negatives", WARNING, text, [_case(data, [row], note=f"{alike[row]:.2f}") for row in rows])


def _mixed(looks: pd.DataFrame) -> Iterator[Finding]:
    colours = ["grey" if mode.startswith(GREY_MODES) else "colour" for mode in looks["colour mode"]]
    for check, values, text in (
        ("mixed_modalities", looks["modality"], "images of different modalities"),
        ("mixed_colours", colours, "grey and coloured images"),
    ):
        counts = Counter(value for value in values if value)
        if len(counts) > 1:
            cases = [Case((), f"{value}: {number} images") for value, number in counts.most_common()]
            yield Finding(check, WARNING, f"{text}: is that meant?", cases)


def _case(data: Collection, rows: Sequence[Any] | np.ndarray, *, labels: bool = False, note: str = "") -> Case:
    told = [
        ", ".join([str(data.splits[row]), *([data.manifest.label_text(row)] if labels else [])])
        for row in map(int, rows)
    ]
    firsts = [told.index(one) for one in dict.fromkeys(told)]  # so that what they differ in is seen
    places = sorted(list(dict.fromkeys([*firsts, *range(len(rows))]))[:NAMED])
    parts = [f"{data.manifest.paths[rows[place]]} ({told[place]})" for place in places]
    if len(rows) > len(places):
        parts.append(f"{len(rows) - len(places)} more")
    text = " and ".join(parts) + (f": {note}" if note else "")
    return Case(tuple(map(int, rows)), text, tuple(int(rows[place]) for place in places))


def _count(number: int, what: str) -> str:
    """Write a number with its noun.

    >>> _count(1, "image"), _count(3, "patient")
    ('1 image', '3 patients')
    """
    return f"{number} {what}{'' if number == 1 else 's'}"
