"""Network and pictures → predictions → the files of evidence; what train and evaluate share."""

import csv
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from medxfer.config import DataConfig
from medxfer.data.audit import Audit, audit
from medxfer.data.collection import Collection
from medxfer.data.datamodule import PictureDataModule
from medxfer.data.decoding import Settings
from medxfer.data.manifest import Manifest
from medxfer.errors import ConfigError
from medxfer.evaluation.evidence import summarise, write_metrics
from medxfer.evaluation.intervals import auroc_with_interval
from medxfer.evaluation.plots import contact_sheet, write_figures
from medxfer.evaluation.predictions import Predictions
from medxfer.models.loading import Description, load_network
from medxfer.models.transfer import TransferNet
from medxfer.run_folder import RunFolder
from medxfer.training.inference import inference_batch
from medxfer.training.task import TransferTask
from medxfer.training.trainer import AMP


def audit_collection(config: DataConfig, data: Collection, *, folder: Path, seed: int) -> Audit:
    """Look for everything that would make a result on these data false; see `medxfer.data.audit`.

    Args:
        config: the data section.
        data: built from it.
        folder: of the decoded pictures, where results that take long are kept too.
        seed: of the models that predict the label from other columns.
    """
    return audit(
        data,
        folder=folder,
        near_duplicates=config.near_duplicates,
        unreadable=config.on_unreadable,
        seed=seed,
        auroc=functools.partial(auroc_with_interval, task=data.manifest.task, seed=seed),
    )


def predict_split(
    trainer: Trainer, task: TransferTask, data: PictureDataModule, manifest: Manifest, split: str
) -> Predictions:
    """Run the network once over a split; every image exactly once.

    Args:
        trainer: says where and in which arithmetic.
        task: with the weights to use.
        data: the pictures.
        manifest: row i is the data module's row i.
        split: train, val or test.
    """
    outputs = trainer.predict(task, data.loader(split)) or []
    rows = torch.cat([rows for rows, _ in outputs]).numpy()
    probs = torch.cat([probs for _, probs in outputs]).double().numpy()
    order = np.argsort(rows)
    rows, probs = rows[order], probs[order]
    return Predictions(
        paths=[manifest.paths[row] for row in rows],
        split=[split] * len(rows),
        targets=manifest.targets[rows],
        probs=probs,
        groups=manifest.patients[rows] if manifest.patients is not None else None,
        class_names=manifest.class_names,
        task=manifest.task,
    )


def write_evidence(
    predictions: Mapping[str, Predictions],
    *,
    thresholds: Sequence[float],
    metrics_file: Path,
    figures: Path,
    history: pd.DataFrame | None,
    seed: int,
) -> dict[str, dict[str, Any]]:
    """Compute every metric with its interval, and write metrics.json and the figures.

    Args:
        predictions: of each split.
        thresholds: fixed on the validation split.
        metrics_file: metrics.json.
        figures: folder of the figures.
        history: of the training, for the learning curves.
        seed: of the bootstrap.

    Returns:
        What metrics.json holds.
    """
    summaries = {split: summarise(one, thresholds=list(thresholds), seed=seed) for split, one in predictions.items()}
    write_metrics(metrics_file, summaries)
    write_figures(figures, predictions, thresholds=list(thresholds), summaries=summaries, history=history)
    return summaries


def flat_metrics(summaries: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Turn metrics.json into `{split}/{metric}`, `…/low`, `…/high`, `…/{class}`; undefined ones are left out."""
    flat: dict[str, float | None] = {}
    for split, summary in summaries.items():
        for metric, entry in summary.items():
            name = f"{split}/{metric}"
            flat[name] = entry["value"]
            flat[f"{name}/low"], flat[f"{name}/high"] = entry["low"], entry["high"]
            for class_name, value in entry.get("per_class", {}).items():
                flat[f"{name}/{class_name}"] = value["value"]
    return {name: value for name, value in flat.items() if value is not None and np.isfinite(value)}


def write_contact_sheet(data: PictureDataModule, manifest: Manifest, path: Path, *, count: int = 16) -> None:
    """Draw the first training images, as augmented in the first epoch, without their names."""
    examples = data.training_examples()
    chosen = np.linspace(0, len(examples) - 1, min(count, len(examples))).astype(int)
    items = [examples[0, int(i)] for i in chosen]
    images = np.stack([item["image"].permute(1, 2, 0).numpy() for item in items])
    contact_sheet(images, [manifest.label_text(int(item["row"])) for item in items], path)


@dataclass(frozen=True)
class FinishedRun:
    """A run that was tested: its network, what feeds it, and its thresholds.

    Attributes:
        folder: where it lies.
        record: its run.json.
        net: the best network.
        description: what feeds it and what its outputs are.
    """

    folder: RunFolder
    record: dict[str, Any]
    net: TransferNet
    description: Description

    @classmethod
    def open(cls, path: Path) -> "FinishedRun":
        """Open a run folder.

        Raises:
            ConfigError: it is not a run, or not finished.
            CheckpointError: its checkpoint cannot be used.
        """
        folder = RunFolder.open(path.resolve())
        record = folder.read_record()
        if record.get("thresholds") is None or not folder.best.is_file():
            raise ConfigError(f"the run {path} is not finished: python -m medxfer.train --resume {path}")
        net, description = load_network(folder.best)
        return cls(folder, record, net, description)

    def settings(self, max_pixels: int) -> Settings:
        """Return how its images are decoded."""
        described = self.description
        return Settings(
            described.channels, described.image_size_px, described.fit, max_pixels=max_pixels, frame=described.frame
        )

    def largest_batch(self, *, on_gpu: bool) -> int:
        """Return how many of its pictures to pass through the network at once."""
        return inference_batch(
            self.description.image_size_px,
            bytes_per_value=2 if AMP[self.record["precision"]] is not None else 4,
            device=torch.device("cuda" if on_gpu else "cpu"),
        )

    def task(self) -> TransferTask:
        """Return the network as a task that can predict."""
        return TransferTask.for_prediction(self.net, task=self.description.task)

    def decide(self, probs: np.ndarray) -> np.ndarray:
        """Probabilities (N, C) → decisions as texts, (N,); multilabel (N, C) of 1 and 0 as texts."""
        names = np.asarray(self.description.class_names)
        thresholds = np.asarray(self.record["thresholds"])
        if self.description.task == "multiclass":
            return names[probs.argmax(axis=1)]
        if self.description.task == "binary":
            return names[(probs[:, 1] >= thresholds[0]).astype(int)]
        return (probs >= thresholds).astype(int).astype(str)


class PredictionWriter(Callback):
    """Writes each batch's rows as soon as they are known, under a temporary name until all are there.

    Args:
        path: the CSV.
        files: name of each row.
        run: names the outputs and decides.
    """

    def __init__(self, path: Path, *, files: Sequence[Path], run: FinishedRun) -> None:
        self.path = path
        self.files = files
        self.run = run
        self.written = 0
        self.failed = 0
        self._temporary = path.with_name(f".{path.name}.writing")

    def __enter__(self) -> "PredictionWriter":
        try:  # names of files need not be text
            self._file = self._temporary.open("w", newline="", encoding="utf-8", errors="backslashreplace")
        except OSError as error:
            raise ConfigError(f"--output {self.path} cannot be written: {error.strerror}") from error
        self._csv = csv.writer(self._file)
        names = self.run.description.class_names
        several = self.run.description.task == "multilabel"
        self._decisions = [f"decision_{name}" for name in names] if several else ["decision"]
        self._csv.writerow(["path", "status", *(f"prob_{name}" for name in names), *self._decisions])
        return self

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: tuple[torch.Tensor, torch.Tensor],
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Write one batch, readable or not, in the order of the input."""
        rows, probs = outputs[0].numpy(), outputs[1].double().numpy()
        decisions = self.run.decide(probs).reshape(len(rows), len(self._decisions)) if len(rows) else []
        lines = {
            int(row): ["ok", *(f"{p:.6f}" for p in prob), *decision]
            for row, prob, decision in zip(rows, probs, decisions, strict=True)
        }
        empty = [""] * (len(self.run.description.class_names) + len(self._decisions))
        lines.update({row: [reason, *empty] for row, reason in batch["failures"]})
        for row in sorted(lines):
            self._csv.writerow([str(self.files[row]), *lines[row]])
        self.written += len(rows)
        self.failed += len(batch["failures"])

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._file.close()
        if kind is None:
            self._temporary.replace(self.path)
        else:
            self._temporary.unlink(missing_ok=True)
