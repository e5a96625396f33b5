"""Evaluate a finished run on other images: `python -m medxfer.evaluate --run runs/NAME --data.source other.csv`."""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from medxfer.config import EvaluateConfig, TrackingConfig
from medxfer.data.collection import decode
from medxfer.data.datamodule import PictureDataModule, choose_workers, cores
from medxfer.data.manifest import Manifest, read_manifest
from medxfer.data.store import PixelStore
from medxfer.errors import CheckpointError, ConfigError, DataError, listed
from medxfer.evaluation.evidence import results_table
from medxfer.evaluation.predictions import write_predictions
from medxfer.parsing import parse_config
from medxfer.results import FinishedRun, flat_metrics, predict_split, write_evidence
from medxfer.run_folder import RunFolder
from medxfer.tracking.mlflow_run import MlflowRun, build_run
from medxfer.training.trainer import build_predictor, limit_threads, uses_gpu
from medxfer.validation import feeding_faults, name_faults
from medxfer.verbs import run_verb

READ: dict[str, Any] = {
    "prog": "python -m medxfer.evaluate",
    "description": "Test a finished run on images it has never seen.",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb and return its exit code."""
    return run_verb(lambda arguments: parse_config(EvaluateConfig, arguments, **READ), evaluate, argv)


def evaluate(config: EvaluateConfig) -> int:
    """Test a run's best network, at its own threshold and preprocessing, on every row of a table.

    Raises:
        MedxferError: a mistake of the user's; nothing is left behind.
    """
    if not config.run or not config.data.source:
        raise ConfigError("--run RUN_FOLDER and --data.source CSV_OR_FOLDER are both needed")
    run = FinishedRun.open(Path(config.run))
    name = config.name if config.name is not None else Path(config.data.source).resolve().stem
    faults = [*name_faults("--name", name), *feeding_faults(config.data.batch_size, config.data.num_workers)]
    if faults:
        raise ConfigError(listed("the settings cannot be used:", faults))
    place = run.folder.evaluations / name
    if place.exists():
        raise ConfigError(f"the evaluation {place} exists: choose another --name, or remove that folder")
    manifest = read_labels(config, run)
    manifest, pictures, skipped = decode(
        manifest,
        folder=run.folder.path.parent / "pixels",
        settings=run.settings(config.data.max_pixels),
        on_unreadable=config.data.on_unreadable,
        workers=cores(),
    )
    for path, reason in skipped:
        print(f"skipped, unreadable: {path}: {reason}", file=sys.stderr)
    refuse_known_images(run.folder, manifest, pictures)

    on_gpu = uses_gpu(config.accelerator)
    limit_threads(cores())
    feed = PictureDataModule(
        pictures=pictures,
        targets=manifest.targets,
        splits=np.full(len(manifest), "test"),
        batch_size=config.data.batch_size or run.largest_batch(on_gpu=on_gpu),
        workers=choose_workers(config.data.num_workers, on_gpu=on_gpu),
        pin_memory=on_gpu,
    )
    tracked = build_run(
        TrackingConfig(uri=config.tracking_uri, experiment=run.record["experiment"]),
        output_dir=run.folder.path.parent,
        name=f"{run.folder.path.name} on {name}",
        uri=run.record["tracking_uri"],
        parent=run.record["mlflow_run_id"],
    )
    with tracked.ending_as("FAILED", interrupted="KILLED"):
        trainer = build_predictor(accelerator=config.accelerator, precision=run.record["precision"])
        predictions = predict_split(trainer, run.task(), feed, manifest, "test")
        (place / "figures").mkdir(parents=True)
        write_predictions(place / "predictions.csv", [predictions])
        summaries = write_evidence(
            {"test": predictions},
            thresholds=run.record["thresholds"],
            metrics_file=place / "metrics.json",
            figures=place / "figures",
            history=None,
            seed=run.record["seed"],
        )
        tracked.set_tags({"images.test": len(manifest), "images.skipped": len(skipped), "evaluation": name})
        log_evaluation(tracked, place, summaries, source=Path(config.data.source).name, pictures=pictures)
        tracked.finish("FINISHED")
    over = "patients" if manifest.patients is not None else "images"
    print(results_table(summaries["test"], title=f"{name}: {len(manifest)} images; 95 % intervals over {over}"))
    print(f"\nall files: {place}")
    return 0


def log_evaluation(
    tracked: MlflowRun, place: Path, summaries: Mapping[str, Mapping[str, Any]], *, source: str, pictures: PixelStore
) -> None:
    """Log which data were used, the results and the figures; no file that names an image."""
    profile = json.dumps({"images.test": len(pictures)})
    tracked.log_dataset(name=source, digest=pictures.content_digest(), profile=profile, context="evaluation")
    tracked.log_metrics(flat_metrics(summaries))
    tracked.log_files([place / "metrics.json"])
    tracked.log_files(sorted((place / "figures").glob("*.png")), folder="figures")


def read_labels(config: EvaluateConfig, run: FinishedRun) -> Manifest:
    """Read the table with the run's columns, unless others are named, and with the run's classes."""
    try:
        stored = yaml.safe_load(run.folder.config.read_text(encoding="utf-8"))["data"]
        columns = {name: stored[name] for name in ("path_column", "label_columns", "patient_column")}
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{run.folder.config} is not the config of a run: {type(error).__name__}") from error
    data, description = config.data, run.description
    return read_manifest(
        Path(data.source or ""),
        image_root=Path(data.image_root) if data.image_root else None,
        path_column=data.path_column or columns["path_column"],
        label_columns=data.label_columns or columns["label_columns"],
        patient_column=data.patient_column,
        usual_patient_column=columns["patient_column"] or "patient_id",
        split_column=None,
        task=description.task,
        class_names=list(description.class_names),
        for_training=False,
        allow_outside_root=config.data.allow_outside_root,
    )


def refuse_known_images(folder: RunFolder, manifest: Manifest, pictures: PixelStore) -> None:
    """Refuse images that the run was trained on or chosen by; say when patients are the same.

    Raises:
        DataError: with the paths of those images.
    """
    known = pd.read_csv(folder.split, dtype=str)
    used = known[known["split"] != "test"]
    # By decoded pixels, so that a copy in another format is known too; runs of older versions noted files only.
    by_pixels = "pixels" in used
    digests = pictures.pixel_digests() if by_pixels else pictures.file_digests()
    before = set(used["pixels" if by_pixels else "sha256"])
    seen = [path for path, digest in zip(manifest.paths, digests, strict=True) if digest in before]
    if seen:
        used_for = "used to train this run or to choose its best epoch and threshold"
        title = f"{len(seen)} of {len(manifest)} images were {used_for}:"
        raise DataError(listed(title, seen) + "\nremove them: a score on them says nothing about new patients")
    if manifest.patients is not None and "patient_id" in used:
        shared = set(manifest.patients) & set(used["patient_id"])
        if shared:
            print(
                f"{len(shared)} patient ids also occur in the training or validation split: if they are the same "
                "people, this result is too good",
                file=sys.stderr,
            )


if __name__ == "__main__":
    sys.exit(main())
