"""A small fit through Lightning's Trainer, for the tests of this room."""

import functools
from pathlib import Path

import numpy as np
import torch
from lightning.pytorch import Callback, Trainer

from medxfer.config import LossConfig, OptimConfig, TrainerConfig
from medxfer.data.datamodule import PictureDataModule
from medxfer.evaluation.metrics import build_epoch_metrics
from medxfer.models.transfer import TransferNet
from medxfer.training.callbacks.checkpointing import Checkpointing
from medxfer.training.callbacks.freezing import Stages
from medxfer.training.callbacks.progress import Progress
from medxfer.training.losses import build_loss
from medxfer.training.optim import build_optimizer
from medxfer.training.stages import StagePlan
from medxfer.training.task import TransferTask
from medxfer.training.trainer import build_trainer
from tests.conftest import SIZE_PX

OPTIM = OptimConfig(lr=0.01, weight_decay=0.1)


def make_feed(*, train: int = 12, val: int = 6, batch_size: int = 4, seed: int = 0) -> PictureDataModule:
    rng = np.random.default_rng(3)
    count = train + val
    return PictureDataModule(
        pictures=rng.integers(0, 256, size=(count, SIZE_PX, SIZE_PX, 1), dtype=np.uint8),
        targets=np.arange(count) % 2,
        splits=np.array(["train"] * train + ["val"] * val),
        batch_size=batch_size,
        seed=seed,
    )


def make_task(net: TransferNet, *, optim: OptimConfig = OPTIM) -> TransferTask:
    return TransferTask(
        net=net,
        loss=build_loss(LossConfig(), task="binary", targets=torch.tensor([0, 1])),
        make_optimizer=functools.partial(build_optimizer, optim),
        metrics=build_epoch_metrics("binary"),
        task="binary",
        description={},
        seed=0,
    )


def fit(
    net: TransferNet,
    folder: Path,
    *more: Callback,
    plan: StagePlan,
    optim: OptimConfig = OPTIM,
    feed: PictureDataModule | None = None,
    patience: int = 9,
    every_minutes: float = 0,
    keep: int = 0,
    accumulate: int = 1,
    resume: Path | None = None,
    progress_bar: Progress | None = None,
) -> Trainer:
    trainer = build_trainer(
        TrainerConfig(accelerator="cpu", accumulate=accumulate),
        optim=optim,
        precision="32-true",
        logger=None,
        callbacks=[
            Stages(net=net, plan=plan, optim=optim, patience=patience, monitor="val/auroc"),
            Checkpointing(folder=folder, monitor="val/auroc", every_minutes=every_minutes, keep=keep),
            *more,
        ],
        max_epochs=plan.total_epochs,
        progress_bar=progress_bar,
    )
    task = make_task(net, optim=optim)
    trainer.fit(task, datamodule=feed or make_feed(), ckpt_path=resume, weights_only=True)
    return trainer
