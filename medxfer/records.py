"""What a training says and leaves behind: the summary on the screen, run.json, split.csv, and the MLflow run."""

import hashlib
import json
import resource
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
import yaml

from medxfer.config import TrackingConfig, TrainConfig
from medxfer.data.audit import FATAL, Audit
from medxfer.data.collection import Collection
from medxfer.data.splits import split_table
from medxfer.errors import DataError
from medxfer.evaluation.evidence import results_table
from medxfer.models.loading import Description
from medxfer.models.transfer import TransferNet, count_parameters
from medxfer.parsing import flatten, to_yaml
from medxfer.results import flat_metrics
from medxfer.run_folder import RunFolder, write_text
from medxfer.tracking.environment import git_commit, hardware, versions
from medxfer.tracking.mlflow_run import MlflowRun
from medxfer.tracking.privacy import shareable, shareable_uri


def write_start(
    folder: RunFolder,
    config: TrainConfig,
    data: Collection,
    description: Description,
    tracked: MlflowRun,
    precision: str,
    weights_digest: str,
    found: Audit,
) -> None:
    """Write config.yaml, split.csv, audit.json and run.json before anything is trained."""
    kept = replace(config, resume=None, debug=False, profile=False)  # these are of one call
    write_text(folder.config, to_yaml(kept))
    write_text(folder.audit, json.dumps(found.to_dict(data), indent=2, ensure_ascii=False) + "\n")
    columns = {
        "path": data.manifest.paths,
        "split": data.splits,
        "sha256": data.pictures.file_digests(),
        "pixels": data.pictures.pixel_digests(),
    }
    if data.manifest.patients is not None:
        columns["patient_id"] = data.manifest.patients
    write_text(folder.split, pd.DataFrame(columns).to_csv(index=False))
    folder.update_record(
        {
            "status": "RUNNING",
            "thresholds": None,  # those of a run that is extended belong to the network before
            "mlflow_run_id": tracked.run_id,
            "tracking_uri": tracked.uri,
            "experiment": config.tracking.experiment,
            "stages": {"head_epochs": config.stages.head_epochs, "finetune_epochs": config.stages.finetune_epochs},
            "precision": precision,
            "seed": config.seed,
            "weights_digest": weights_digest,
            **description.to_dict(),
            "data_digest": data_digest(data),
            "split_digest": split_digest(data),
            "audit": {
                "fatal": [finding.check for finding in found.fatal],
                "warnings": [finding.check for finding in found.warnings],
            },
            "versions": versions(),
            "hardware": hardware(),
            "git_commit": git_commit(),
        }
    )


def data_digest(data: Collection) -> str:
    """Return a SHA-256 over labels, patients and the content of every image."""
    return hashlib.sha256((data.manifest.digest() + data.pictures.content_digest()).encode()).hexdigest()


def split_digest(data: Collection) -> str:
    """Return a SHA-256 over which image is in which split."""
    rows = sorted(zip(data.manifest.paths, data.splits, strict=True))
    return hashlib.sha256("\n".join(f"{path}\t{split}" for path, split in rows).encode()).hexdigest()


def refuse_changed_data(record: Mapping[str, Any], data: Collection) -> None:
    """Refuse to go on with other labels, images or another split than the run began with.

    Raises:
        DataError: images of the test split may have become images to train on.
    """
    digests = {"data_digest": data_digest(data), "split_digest": split_digest(data)}
    if any(record.get(name, digest) != digest for name, digest in digests.items()):
        raise DataError(
            "the labels, images or splits are not those that the run began with, so its test split could no longer be "
            "trusted: put them back as they were, or start a new run"
        )


def log_start(tracked: MlflowRun, folder: RunFolder, config: TrainConfig, data: Collection, *, resumed: bool) -> None:
    """Log every config value, the data's digests and sizes, and what the run runs on; a resumed run gets a tag."""
    if resumed:
        resumptions = int(folder.read_record().get("resumptions", 0)) + 1
        folder.update_record({"resumptions": resumptions})
        now = flatten(shareable(asdict(config)))
        tracked.set_tags({"resumptions": resumptions, f"resumed.{resumptions}": json.dumps(_changed(tracked, now))})
    else:
        tracked.log_params(flatten(shareable(asdict(config))))
        tracked.log_text(yaml.safe_dump(shareable(asdict(config)), sort_keys=False), "config.yaml")
    record = folder.read_record()
    sizes = {f"images.{split}": int(np.sum(data.splits == split)) for split in ("train", "val", "test")}
    tracked.set_tags(
        {
            **sizes,
            "images.skipped": len(data.skipped),
            "patients": len(set(data.manifest.patients)) if data.manifest.patients is not None else "unknown",
            "audit.fatal": ", ".join(record["audit"]["fatal"]) or "none",
            "audit.warnings": ", ".join(record["audit"]["warnings"]) or "none",
            "class_names": json.dumps(data.manifest.class_names),
            "task": data.manifest.task,
            "data_digest": record["data_digest"],
            "split_digest": record["split_digest"],
            "weights_digest": record["weights_digest"] or "random",
            "precision": record["precision"],
            "git_commit": record["git_commit"] or "unknown",
            **{f"version.{name}": value for name, value in record["versions"].items()},
            **{f"hardware.{name}": value for name, value in record["hardware"].items()},
        }
    )
    if not resumed:
        name = str(shareable(asdict(config))["data"]["source"])
        tracked.log_dataset(name=name, digest=record["data_digest"], profile=json.dumps(sizes), context="training")
    tracked.watch_system(resumed=resumed)


def _changed(tracked: MlflowRun, now: Mapping[str, Any]) -> dict[str, str]:
    before = tracked.params()
    return {name: str(value) for name, value in now.items() if before.get(name, str(value)) != str(value)}


def print_start(
    config: TrainConfig,
    data: Collection,
    net: TransferNet,
    description: Description,
    precision: str,
    found: Audit,
    *,
    on_gpu: bool,
) -> None:
    """Print images and patients per split and class, what the audit found, parameters, device and precision."""
    manifest = data.manifest
    for path, reason in data.skipped:
        print(f"skipped, unreadable: {path}: {reason}", file=sys.stderr)
    positive = f"; positive: {manifest.class_names[-1]}" if manifest.task == "binary" else ""
    print(f"\ntask: {manifest.task}; classes: {', '.join(manifest.class_names)}{positive}")
    print(
        split_table(
            data.splits,
            manifest.targets,
            manifest.patients,
            class_names=manifest.class_names,
        )
    )
    for finding in found.findings:  # its cases name images, which belong in audit.json
        print(f"{'LEAK, ALLOWED' if finding.severity == FATAL else 'warning'}: {finding.text}")
    frozen, trained = count_parameters(net)
    mean = ", ".join(f"{m:.4f}" for m in description.spec.input_mean)
    std = ", ".join(f"{s:.4f}" for s in description.spec.input_std)
    device = torch.cuda.get_device_name() if on_gpu else f"CPU, {torch.get_num_threads()} threads"
    print(f"frozen up to {description.spec.freeze_until}: {frozen:,} parameters; trained: {trained:,}")
    print(f"input: mean {mean}; standard deviation {std} (of pixels on 0..1)")
    print(
        f"device: {device}; precision: {precision}; batch: {config.data.batch_size} images over all devices\n",
        flush=True,
    )


def log_evidence(
    tracked: MlflowRun,
    folder: RunFolder,
    config: TrackingConfig,
    summaries: Mapping[str, Mapping[str, Any]],
    *,
    seconds: Mapping[str, float],
) -> None:
    """Log the results, the figures and the best checkpoint; files with names of images only if the user asked.

    Those of the validation split are called `val_best/…`: `val/…` are the curves of all epochs.
    """
    named = {"val_best" if split == "val" else split: summary for split, summary in summaries.items()}
    times = {"seconds" if part == "all" else f"seconds/{part}": value for part, value in seconds.items()}
    tracked.log_metrics({**flat_metrics(named), **times, "peak_memory_mb": peak_memory_mb()})
    tracked.log_files([folder.metrics, folder.history])
    if config.log_predictions:
        tracked.log_files([folder.predictions, folder.split])
    pictures = {"augmentation.png"}
    figures = [f for f in sorted(folder.figures.glob("*.png")) if config.log_images or f.name not in pictures]
    tracked.log_files(figures, folder="figures")
    tracked.log_files([folder.best], folder="checkpoints")


def print_results(
    folder: RunFolder, config: TrainConfig, summaries: Mapping[str, Mapping[str, Any]], *, has_patients: bool
) -> None:
    """Print the test's results with intervals, and what a user wants next."""
    title = f"test split, best epoch; 95 % intervals over {'patients' if has_patients else 'images'}"
    print("\n" + results_table(summaries["test"], title=title))
    leaks = folder.read_record().get("audit", {}).get("fatal", [])
    if leaks:
        print(f"this result is false: the audit found {', '.join(leaks)}, which data.allow_leaks let through")
    print(f"\nall files: {folder.path}\nnext:")
    print(f"  python -m medxfer.predict --run {folder.path} IMAGE_OR_FOLDER --output predictions.csv")
    print(f"  python -m medxfer.evaluate --run {folder.path} --data.source OTHER.csv")
    uri = folder.read_record()["tracking_uri"]
    if uri.startswith(("http://", "https://")):
        print(f"  open {shareable_uri(uri)} in a browser")
    else:
        local = uri.startswith("sqlite:///") and "?" not in uri  # other addresses may hold a password
        print(f"  mlflow ui --backend-store-uri {uri if local else shareable_uri(uri)}")


class Seconds:
    """How long the parts of a verb took, and all of it since this was made."""

    def __init__(self) -> None:
        self.parts: dict[str, float] = {}
        self._started = time.monotonic()

    @contextmanager
    def of(self, part: str) -> Iterator[None]:
        """Measure what happens inside."""
        started = time.monotonic()
        yield
        self.parts[part] = time.monotonic() - started

    def so_far(self) -> dict[str, float]:
        """Return the seconds of each part, and of `all`."""
        return {**self.parts, "all": time.monotonic() - self._started}


def peak_memory_mb() -> float:
    """Return the largest resident memory of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)
