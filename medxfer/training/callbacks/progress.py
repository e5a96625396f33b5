"""A progress bar with loss, AUROC and the remaining time of the whole run."""

import sys
import time
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar

from medxfer.training.callbacks.history import clock
from medxfer.training.stages import StagePlan


class Progress(TQDMProgressBar):
    """Lightning's bar with the stage, the last loss, the last validation's AUROC, and how long all stages still take.

    Args:
        plan: the stages.
    """

    def __init__(self, *, plan: StagePlan) -> None:
        super().__init__(leave=False)
        self.plan = plan
        self._started = 0.0
        self._batches = 0
        self._loss = float("nan")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        super().on_train_start(trainer, pl_module)
        self._started, self._batches = time.monotonic(), 0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the batch."""
        self._batches += 1
        self._loss = float(outputs["loss"]) * trainer.accumulate_grad_batches  # Lightning divides by it
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """Return what stands behind the bar."""
        epoch = trainer.current_epoch
        done = epoch * trainer.num_training_batches + self._batches_of(trainer)
        left = self.plan.total_epochs * trainer.num_training_batches - done
        metrics: dict[str, Any] = {"stage": self.plan.stage(epoch), "loss": f"{self._loss:.4f}"}
        if "val/auroc" in trainer.callback_metrics:
            metrics["auroc"] = f"{float(trainer.callback_metrics['val/auroc']):.4f}"
        if self._batches:
            metrics["left"] = clock(left * (time.monotonic() - self._started) / self._batches)
        return metrics

    @staticmethod
    def _batches_of(trainer: Trainer) -> int:
        return trainer.fit_loop.epoch_loop.batch_progress.current.completed


def progress_bar(plan: StagePlan) -> Progress | None:
    """Return a bar where a person looks at a terminal, else None: `History` prints a line per epoch everywhere."""
    return Progress(plan=plan) if sys.stdout.isatty() else None
