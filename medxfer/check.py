"""Audit a collection before training: `python -m medxfer.check --config configs/xray.yaml --data.source labels.csv`."""

import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from medxfer.config import CheckConfig, TrainConfig
from medxfer.data.audit import FATAL, Audit
from medxfer.data.collection import Collection, build_collection
from medxfer.data.datamodule import cores
from medxfer.data.scan import scan_folder
from medxfer.data.splits import split_table
from medxfer.errors import ConfigError, listed
from medxfer.evaluation.audit_page import audit_page, verdict
from medxfer.parsing import parse_config
from medxfer.results import audit_collection
from medxfer.run_folder import write_text
from medxfer.validation import data_faults
from medxfer.verbs import run_verb

READ: dict[str, Any] = {
    "prog": "python -m medxfer.check",
    "description": "Find what would make a result false, before anything is trained; or list a folder of DICOM files.",
}

SHOWN = 5
"""Cases of a finding that are printed; the page and audit.json have all."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb and return its exit code."""
    return run_verb(lambda arguments: parse_config(CheckConfig, arguments, check=_faults, files_of=TrainConfig, **READ),
                    check, argv)  # fmt: skip


def check(config: CheckConfig) -> int:
    """Audit a collection as a training would split it, and write audit.json and audit.html; or scan a folder.

    Returns:
        0, or 1 when the collection is not fit for training.

    Raises:
        MedxferError: a mistake of the user's.
    """
    if config.scan:
        return scan(Path(config.scan), Path(str(config.output)))
    source = Path(str(config.data.source)).expanduser().resolve()
    store = Path(config.output_dir) / "pixels"
    lenient = replace(config.data, on_unreadable="skip")  # all of them are told, beside everything else
    data = build_collection(lenient, store_folder=store, seed=config.seed, workers=cores())
    found = audit_collection(config.data, data, folder=store, seed=config.seed)
    place = Path(config.output) if config.output else Path(config.output_dir) / "audits" / _name(source)
    write_audit(place, found, data, title=source.name, seed=config.seed)
    print_audit(found, data, title=source.name)
    print(f"\nsee {place / 'audit.html'}")
    return 1 if found.fatal else 0


def write_audit(place: Path, found: Audit, data: Collection, *, title: str, seed: int) -> None:
    """Write audit.json and audit.html, which only the user may read: they name and show patients' images."""
    try:
        if not place.is_dir():
            place.mkdir(parents=True)
            place.chmod(0o700)
        record = json.dumps(found.to_dict(data), indent=2, ensure_ascii=False) + "\n"
        for name, text in (("audit.json", record), ("audit.html", audit_page(found, data, title=title, seed=seed))):
            write_text(place / name, text)
            (place / name).chmod(0o600)
    except OSError as error:
        raise ConfigError(f"the audit cannot be written to {place}: {error.strerror}; see --output") from error


def print_audit(found: Audit, data: Collection, *, title: str) -> None:
    """Print the split, each finding with its first cases, and the verdict."""
    manifest = data.manifest
    patients = f" of {len(set(manifest.patients))} patients" if manifest.patients is not None else ""
    print(f"{title}: {len(manifest)} images{patients}; {manifest.task}; classes: {', '.join(manifest.class_names)}")
    print(split_table(data.splits, manifest.targets, manifest.patients, class_names=manifest.class_names) + "\n")
    for finding in found.findings:
        lines = [case.text for case in finding.cases if case.text]
        print(listed(f"{'FATAL' if finding.severity == FATAL else 'warning'}: {finding.text}", lines, limit=SHOWN))
    print(f"\n{verdict(found)}")


def scan(folder: Path, output: Path) -> int:
    """Write the table of a folder of DICOM files; its labels are left to fill in.

    Raises:
        MedxferError: a mistake of the user's; nothing is written.
    """
    if output.exists():
        raise ConfigError(f"{output} exists, maybe with labels in it: choose another --output, or remove it")
    if not output.parent.is_dir():
        raise ConfigError(f"the folder of --output does not exist: {output.parent}")
    table, others = scan_folder(folder, workers=cores())
    inside = folder.resolve().is_relative_to(output.parent.resolve())
    if inside:  # then paths can start from the table, as everywhere
        below = folder.resolve().relative_to(output.parent.resolve())
        table["path"] = [(below / path).as_posix() for path in table["path"]]
    try:
        write_text(output, table.to_csv(index=False))
    except OSError as error:
        raise ConfigError(f"--output {output} cannot be written: {error.strerror}") from error
    patients = table["patient_id"].tolist()
    unnamed = patients.count("")
    print(f"{len(table)} pictures of {len(set(patients) - {''})} patients: {output}")
    if unnamed:
        print(f"{unnamed} of them name no patient: fill in patient_id, or leaks cannot be excluded")
    if others:
        print(listed(f"{len(others)} DICOM files are left out:", [f"{path}: {reason}" for path, reason in others]))
    root = "" if inside else f" --data.image_root {folder}"
    print(f"fill in the column label, then: python -m medxfer.check --data.source {output}{root}")
    return 0


def _faults(config: CheckConfig) -> Iterable[str]:
    if config.scan:
        if not config.output:
            yield "--scan needs the table to write: add --output labels.csv"
        if config.data.source:
            yield "--scan makes a table and data.source audits one: give one of them"
        return
    yield from data_faults(config.data)


def _name(source: Path) -> str:
    """Return a name for the audit of a source; most tables are called labels.csv."""
    return f"{source.parent.name}-{source.stem}" if source.parent.name else source.stem


if __name__ == "__main__":
    sys.exit(main())
