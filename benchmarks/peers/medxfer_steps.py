"""(d), (e) and (f): medxfer without caches, with activations kept at the cut, and its network alone.

The pieces are put together as `medxfer.train` does it. Checkpoints and the history are left out: all contestants train
without validation here. Where everything is frozen the head stage runs, and what (e) keeps are pooled features.
(e) has one version of each image, so that its first pass lies before its first step.
"""

import contextlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch

from medxfer.config import CacheConfig, DataConfig, ModelConfig, StagesConfig, TrainConfig
from medxfer.data.collection import Collection, build_collection
from medxfer.data.datamodule import PictureDataModule, cores
from medxfer.models.loading import Description
from medxfer.models.transfer import TransferNet, count_parameters
from medxfer.run_folder import RunFolder
from medxfer.train import RunPlace, build_cache, build_callbacks, build_feed, build_net, build_task
from medxfer.training.callbacks.checkpointing import Checkpointing
from medxfer.training.callbacks.history import History
from medxfer.training.callbacks.interruption import Interruption
from medxfer.training.stages import StagePlan
from medxfer.training.task import TransferTask
from medxfer.training.trainer import Precision, build_predictor, build_trainer, resolve_precision, uses_gpu
from peers.gate import Gate
from peers.job import Job

EPOCHS = 10**6
"""More than a contestant is given time for."""

AT_THE_END = (Checkpointing, History, Interruption)
"""What writes files at the end of an epoch."""


@dataclass(frozen=True)
class Pieces:
    """What a training is put together from."""

    config: TrainConfig
    data: Collection
    net: TransferNet
    description: Description
    feed: PictureDataModule
    task: TransferTask
    plan: StagePlan
    precision: Precision


def build_config(job: Job, *, cache: str) -> TrainConfig:
    """Return the settings of one stage without end; all others are medxfer's defaults."""
    only_head = job.cut == "all"
    return TrainConfig(
        output_dir=job.store,
        seed=job.seed,
        data=data_config(job, views=DataConfig.views if cache == "none" else 1),
        model=ModelConfig(
            weights=job.weights,
            input_mean=list(job.mean),
            input_std=list(job.std),
            freeze_until=job.cut,  # type: ignore[arg-type]
        ),
        stages=StagesConfig(
            head_epochs=EPOCHS if only_head else 0, finetune_epochs=0 if only_head else EPOCHS, patience=EPOCHS
        ),
        cache=CacheConfig(at="head" if only_head and cache == "cut" else cache),  # type: ignore[arg-type]
    )


def data_config(job: Job, *, views: int) -> DataConfig:
    """Return the settings of the shared table."""
    return DataConfig(
        source=job.table,
        split_column="split",
        class_names=list(job.class_names),
        modality=job.modality,  # type: ignore[arg-type]
        allow_outside_root=True,
        near_duplicates="off",
        image_size_px=job.image_size_px,
        batch_size=job.batch_size,
        views=views,
    )


def build_pieces(job: Job, *, cache: str) -> Pieces:
    """Build data, network and task as a training does."""
    lightning.seed_everything(job.seed, workers=True, verbose=False)
    config = build_config(job, cache=cache)
    data = build_collection(config.data, store_folder=Path(job.store), seed=job.seed, workers=cores())
    with contextlib.redirect_stdout(io.StringIO()):
        net, description, _ = build_net(config, data, RunPlace(RunFolder(Path(job.store)), False, {}))
    on_gpu = uses_gpu("auto")
    precision = resolve_precision("auto", on_gpu=on_gpu)
    feed = build_feed(config, data, precision, on_gpu=on_gpu)
    task = build_task(config, data, net, description)
    plan = StagePlan(config.stages.head_epochs, config.stages.finetune_epochs)
    return Pieces(config, data, net, description, feed, task, plan, precision)


class Turns(lightning.Callback):
    """Hands every batch to the gate."""

    def __init__(self, gate: Gate) -> None:
        self.gate = gate

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """After a step."""
        self.gate(len(batch["target"]))

    def on_predict_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """After a batch of the evaluation."""
        self.gate(len(batch["target"]))


def train_steps(job: Job, gate: Gate, *, cache: str) -> None:
    """Train until the gate closes.

    Args:
        job: the work.
        gate: takes turns.
        cache: none, or cut.
    """
    made = build_pieces(job, cache=cache)
    gate.trained, gate.remark = count_parameters(made.net)[1], made.precision
    made.feed.keeper = cached = build_cache(made.config, made.data, made.feed, made.net, made.plan, made.precision)
    callbacks = build_callbacks(made.config, RunFolder(Path(job.store)), made.net, made.plan, cached)
    trainer = build_trainer(
        made.config.trainer,
        optim=made.config.optim,
        precision=made.precision,
        logger=None,
        callbacks=[*(one for one in callbacks if not isinstance(one, AT_THE_END)), Turns(gate)],
        max_epochs=EPOCHS,
        progress_bar=None,
    )
    trainer.limit_val_batches = 0
    with contextlib.redirect_stdout(io.StringIO()):
        trainer.fit(made.task, datamodule=made.feed)


def evaluate_steps(job: Job, gate: Gate, *, cache: str) -> None:
    """Evaluate all images again and again, as `medxfer.evaluate` does, until the gate closes."""
    made = build_pieces(job, cache=cache)
    made.feed.splits = np.full(len(made.data.splits), "test")
    made.feed.eval_batch_size = job.batch_size  # medxfer would take a larger one
    gate.remark = made.precision
    trainer = build_predictor(accelerator="auto", precision=made.precision, callbacks=[Turns(gate)])
    task = TransferTask.for_prediction(made.net.eval(), task=made.description.task)
    while True:
        trainer.predict(task, made.feed.loader("test"), return_predictions=False)


def roofline_steps(job: Job, gate: Gate) -> None:
    """Train on one resident batch: no Lightning, no loader, no augmentation, no clipping; until the gate closes."""
    made = build_pieces(job, cache="none")
    gate.trained, gate.remark = count_parameters(made.net)[1], made.precision
    device = torch.device("cuda" if uses_gpu("auto") else "cpu")
    batch = next(iter(made.feed.train_dataloader()))
    images, targets = batch["image"].to(device), batch["target"].to(device)
    made.task.to(device).train()
    made.net.set_head_only(job.cut == "all")
    optimizer = made.task.configure_optimizers()
    while True:
        optimizer.zero_grad()
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=made.precision == "bf16-mixed"):
            logits = made.net(images)
        loss = made.task.loss(logits.float(), targets)
        loss.backward()
        optimizer.step()
        gate(len(targets))
