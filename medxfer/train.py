"""Train: `python -m medxfer.train --config configs/xray.yaml --data.source labels.csv`."""

import functools
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import lightning
import pandas as pd
import torch

from medxfer.config import TrainConfig
from medxfer.data.audit import refuse_fatal
from medxfer.data.augment import build_augmentation
from medxfer.data.batch_augment import build_batch_augmentation
from medxfer.data.collection import CHANNELS, Collection, build_collection
from medxfer.data.datamodule import PictureDataModule, choose_device, choose_workers, cores
from medxfer.data.manifest import Manifest
from medxfer.errors import ConfigError
from medxfer.evaluation.metrics import build_epoch_metrics, youden_thresholds
from medxfer.evaluation.predictions import write_predictions
from medxfer.models.head import initialize_head
from medxfer.models.loading import Description, load_network
from medxfer.models.transfer import TransferNet, build_network
from medxfer.models.weights import load_source
from medxfer.parsing import absolute_paths, check_training, parse_config, resume_config
from medxfer.records import (
    Seconds,
    log_evidence,
    log_start,
    peak_memory_mb,
    print_results,
    print_start,
    refuse_changed_data,
    write_start,
)
from medxfer.results import audit_collection, predict_split, write_contact_sheet, write_evidence
from medxfer.run_folder import RunFolder
from medxfer.tracking.mlflow_run import MlflowRun, build_run
from medxfer.training.callbacks.checkpointing import Checkpointing
from medxfer.training.callbacks.freezing import Stages
from medxfer.training.callbacks.history import History
from medxfer.training.callbacks.initialization import HeadInitialization
from medxfer.training.callbacks.interruption import Interruption, TrainingInterruptedError
from medxfer.training.callbacks.profiling import Profiling
from medxfer.training.callbacks.progress import progress_bar
from medxfer.training.callbacks.throughput import Throughput
from medxfer.training.features import FeatureCache
from medxfer.training.inference import inference_batch
from medxfer.training.losses import build_loss
from medxfer.training.optim import build_optimizer
from medxfer.training.stages import StagePlan
from medxfer.training.task import TransferTask
from medxfer.training.trainer import (
    AMP,
    Precision,
    build_trainer,
    compiler_options,
    limit_threads,
    resolve_precision,
    uses_gpu,
)
from medxfer.validation import training_faults
from medxfer.verbs import run_verb

READ: dict[str, Any] = {
    "prog": "python -m medxfer.train",
    "description": "Fine-tune Inception V3 on a table of labelled images.",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb and return its exit code."""
    return run_verb(read_config, train, argv)


def train(config: TrainConfig) -> int:
    """Train, test once, and leave the evidence in the run folder and in MLflow.

    Returns:
        0, or 130 when Ctrl-C ended the training; `last.ckpt` then holds everything up to the last batch.

    Raises:
        MedxferError: a mistake of the user's; nothing was started, or what was saved is intact.
    """
    on_gpu = uses_gpu(config.trainer.accelerator)
    limit_threads(cores())
    lightning.seed_everything(config.seed, workers=True, verbose=False)
    place = RunPlace.of(config)
    store, seconds = Path(config.output_dir) / "pixels", Seconds()
    with seconds.of("decoding"):
        data = build_collection(config.data, store_folder=store, seed=config.seed, workers=cores())
    if place.resumed:
        refuse_changed_data(place.record, data)
    with seconds.of("audit"):
        found = audit_collection(config.data, data, folder=store, seed=config.seed)
    refuse_fatal(found, allow_leaks=config.data.allow_leaks, source=Path(str(config.data.source)).name)
    net, description, weights_digest = build_net(config, data, place)
    precision = place.record.get("precision") or resolve_precision(config.trainer.precision, on_gpu=on_gpu)
    feed = build_feed(config, data, precision, on_gpu=on_gpu)
    plan = StagePlan(config.stages.head_epochs, config.stages.finetune_epochs)
    feed.keeper = cache = build_cache(config, data, feed, net, plan, precision)
    over = "finetune" in place.folder.stages_begun()
    cache.prepare([feed.training_examples(), feed.examples("val")], head_over=over)
    tracked = place.enter(config)
    with place.folder.noting_the_end(), tracked.ending_as("FAILED", interrupted="KILLED"):
        write_start(place.folder, config, data, description, tracked, precision, weights_digest, found)
        log_start(tracked, place.folder, config, data, resumed=place.resumed)
        print_start(config, data, net, description, precision, found, on_gpu=on_gpu)
        write_contact_sheet(feed, data.manifest, place.folder.figures / "augmentation.png")
        if config.trainer.compile:
            net.compile(**compiler_options(config.data.batch_size, on_gpu=on_gpu))
        task = build_task(config, data, net, description)
        trainer = build_trainer(
            config.trainer,
            optim=config.optim,
            precision=precision,
            logger=tracked.logger,
            callbacks=build_callbacks(config, place.folder, net, plan, cache),
            max_epochs=plan.total_epochs,
            progress_bar=progress_bar(plan),
        )
        last = place.folder.last if place.resumed and place.folder.last.is_file() else None
        try:
            trainer.fit(task, datamodule=feed, ckpt_path=last, weights_only=True)
        except TrainingInterruptedError:
            place.folder.update_record({"status": "KILLED"})
            tracked.finish("KILLED")
            place.folder.say_how_to_resume()
            return 130

        with seconds.of("evaluation"):
            summaries = test_best(trainer, task, feed, data.manifest, place.folder, seed=config.seed)
        times = {**seconds.so_far(), "features": cache.seconds}
        log_evidence(tracked, place.folder, config.tracking, summaries, seconds=times)
        tracked.finish("FINISHED")
        place.folder.update_record({"status": "FINISHED", "seconds": times["all"], "peak_memory_mb": peak_memory_mb()})
    print_results(place.folder, config, summaries, has_patients=data.manifest.patients is not None)
    return 0


def read_config(argv: list[str]) -> TrainConfig:
    """Read the settings of a new run, or of the run that is resumed; a run always has a name."""
    config = parse_config(TrainConfig, argv, check=lambda new: () if new.resume else training_faults(new), **READ)
    if config.resume:
        stored = RunFolder.open(Path(config.resume)).config
        return check_training(resume_config(argv, stored=stored, **READ))
    if not config.tracking.run_name:
        files = [
            token.partition("=")[2] or following
            for token, following in pairwise([*argv, ""])
            if token.partition("=")[0] == "--config"
        ]
        stem = Path(files[-1]).stem if files else "run"
        name = f"{stem}-{datetime.now(UTC):%Y%m%d-%H%M%S}"
        config = replace(config, tracking=replace(config.tracking, run_name=name))
    return absolute_paths(config)


@dataclass
class RunPlace:
    """Where a run lives: a folder that does not exist yet, or the one that is resumed."""

    folder: RunFolder
    resumed: bool
    record: dict

    @classmethod
    def of(cls, config: TrainConfig) -> "RunPlace":
        """Find the folder; a new one is not made yet, so that a mistake in the data leaves nothing behind.

        Raises:
            ConfigError: a new run's folder exists, or the run that is resumed has nothing left to do.
        """
        if config.resume:
            folder = RunFolder.open(Path(config.resume))
            record = folder.read_record()
            planned = {"head_epochs": config.stages.head_epochs, "finetune_epochs": config.stages.finetune_epochs}
            if record.get("status") == "FINISHED" and record.get("stages") == planned:
                raise ConfigError(
                    f"the run {folder.path} is finished; larger stages.head_epochs or stages.finetune_epochs extend it"
                )
            longer = planned["head_epochs"] > record.get("stages", planned)["head_epochs"]
            if longer and "finetune" in folder.stages_begun():
                raise ConfigError(
                    f"the head stage of {folder.path} is over, so that stages.head_epochs can no longer grow; "
                    "stages.finetune_epochs can"
                )
            return cls(folder, True, record)
        path = Path(config.output_dir) / str(config.tracking.run_name)
        RunFolder.refuse_existing(path)
        return cls(RunFolder(path), False, {})

    def enter(self, config: TrainConfig) -> MlflowRun:
        """Make a new run's folder, keep other processes out of it, and start or go on with the MLflow run.

        Raises:
            ConfigError: the folder or the MLflow store cannot be used; a new run's folder is gone again.
        """
        if not self.resumed:
            RunFolder.create(self.folder.path)
        self.folder.lock()
        try:
            return build_run(
                config.tracking,
                output_dir=Path(config.output_dir),
                name=self.folder.path.name,
                run_id=self.record.get("mlflow_run_id"),
                uri=self.record.get("tracking_uri"),
            )
        except BaseException:  # Ctrl-C too
            if not self.resumed:
                self.folder.remove_empty()
            raise


def build_net(config: TrainConfig, data: Collection, place: RunPlace) -> tuple[TransferNet, Description, str]:
    """Build the network on its source of weights, or as the resumed run left it."""
    if place.resumed and place.folder.last.is_file():
        net, description = load_network(place.folder.last)
        return net, description, place.record["weights_digest"]
    model = config.model
    source = load_source(model.weights, input_mean=model.input_mean, input_std=model.input_std)
    print(f"weights: {source.name}; mean and standard deviation of the input by {source.declared_by}")
    mean = None
    if model.normalization == "dataset":
        mean = data.pictures.mean((data.splits == "train").nonzero()[0]).tolist()
    net = build_network(model, source=source, outputs=data.manifest.num_classes, dataset_mean=mean, seed=config.seed)
    description = Description(
        spec=net.spec,
        task=data.manifest.task,
        class_names=data.manifest.class_names,
        channels=CHANNELS[config.data.modality],
        image_size_px=config.data.image_size_px,
        fit=config.data.fit,
        frame=config.data.frame,
    )
    return net, description, source.digest


def build_feed(config: TrainConfig, data: Collection, precision: Precision, *, on_gpu: bool) -> PictureDataModule:
    """Build the data module over the decoded pictures."""
    asked = config.data
    device = torch.device("cuda" if on_gpu else "cpu")
    bytes_per_value = 2 if AMP[precision] is not None else 4
    return PictureDataModule(
        pictures=data.pictures,
        targets=data.manifest.targets,
        splits=data.splits,
        batch_size=asked.batch_size,
        eval_batch_size=inference_batch(asked.image_size_px, bytes_per_value=bytes_per_value, device=device),
        workers=choose_workers(asked.num_workers, on_gpu=on_gpu),
        least_batch=2 if config.model.suffix_batch_norm == "train" else 1,
        augment=build_augmentation(asked.modality, asked.augment),
        views=asked.views,
        seed=config.seed,
        pin_memory=on_gpu,
        device=choose_device(asked.resident, rows=len(data.pictures), row_bytes=data.pictures[0].nbytes, device=device),
        batch_augment=build_batch_augmentation(asked.modality, asked.augment),
    )


def build_cache(
    config: TrainConfig, data: Collection, feed: PictureDataModule, net: TransferNet, plan: StagePlan,
    precision: Precision,
) -> FeatureCache:  # fmt: skip
    """Build what keeps the activations of the frozen blocks, by everything that decides them."""
    return FeatureCache(
        net=net,
        plan=plan,
        at=config.cache.at,
        folder=Path(config.output_dir) / "features",
        digests=data.pictures.file_digests(),
        identity={
            "pixels": data.pictures.settings_name(),
            "image_size_px": config.data.image_size_px,
            "channels": CHANNELS[config.data.modality],
            "modality": config.data.modality,
            "augment": config.data.augment,
            "augment_on": "cpu" if feed.device is None else "device",
            "seed": config.seed,
            "device": "cuda" if feed.pin_memory else "cpu",
            "compile": config.trainer.compile,
        },
        amp=AMP[precision],
        batch_size=feed.eval_batch_size or feed.batch_size,
        pin_memory=feed.pin_memory,
    )


def build_task(config: TrainConfig, data: Collection, net: TransferNet, description: Description) -> TransferTask:
    """Join network, loss, optimizer and metrics."""
    manifest = data.manifest
    training_targets = torch.from_numpy(manifest.targets[data.splits == "train"])
    return TransferTask(
        net=net,
        loss=build_loss(config.loss, task=manifest.task, targets=training_targets),
        make_optimizer=functools.partial(build_optimizer, config.optim),
        metrics=build_epoch_metrics(manifest.task),
        task=manifest.task,
        description=description.to_dict(),
        seed=config.seed,
    )


def test_best(
    trainer: lightning.Trainer,
    task: TransferTask,
    feed: PictureDataModule,
    manifest: Manifest,
    folder: RunFolder,
    *,
    seed: int,
) -> dict[str, dict[str, Any]]:
    """Fix the threshold on the validation split, then test the best epoch once, and write the evidence.

    Returns:
        What metrics.json holds.
    """
    best, _ = load_network(folder.best)
    task.net.load_state_dict(best.state_dict())
    val = predict_split(trainer, task, feed, manifest, "val")
    thresholds = youden_thresholds(val.probs, val.targets, task=val.task)
    folder.update_record({"thresholds": thresholds})
    test = predict_split(trainer, task, feed, manifest, "test")
    write_predictions(folder.predictions, [val, test])
    return write_evidence(
        {"val": val, "test": test},
        thresholds=thresholds,
        metrics_file=folder.metrics,
        figures=folder.figures,
        history=pd.read_csv(folder.history),
        seed=seed,
    )


def build_callbacks(
    config: TrainConfig, folder: RunFolder, net: TransferNet, plan: StagePlan, cache: FeatureCache
) -> list[lightning.Callback]:
    """List what acts during the fit, in the order in which it acts."""
    init = config.head_init
    initialize = functools.partial(
        initialize_head,
        method=init.method,
        mode=init.mode,
        distribution=init.distribution,
        std=init.std,
        bias=init.bias,
    )
    checkpointing = Checkpointing(
        folder=folder.checkpoints,
        monitor=config.stages.monitor,
        every_minutes=config.checkpoint.every_minutes,
        keep=config.checkpoint.keep,
    )
    interruption = Interruption(checkpointing=checkpointing)
    cache.interrupted = lambda: interruption.asked
    throughput = Throughput(plan=plan)
    profiling = [Profiling(folder=folder.path / "profile", plan=plan)] if config.profile else []
    return [
        *profiling,  # first, so that no other callback falls into its steps
        HeadInitialization(head=net.head, initialize=initialize, seed=config.seed),
        Stages(net=net, plan=plan, optim=config.optim, patience=config.stages.patience, monitor=config.stages.monitor),
        throughput,
        History(path=folder.history, plan=plan, throughput=throughput),
        checkpointing,
        interruption,
    ]


if __name__ == "__main__":
    sys.exit(main())
