"""Writes `best.ckpt` and `last.ckpt`: under a temporary name, verified, then renamed; no half file is ever seen."""

import os
import time
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from medxfer.errors import CheckpointError
from medxfer.models.weights import read_checkpoint
from medxfer.training.callbacks.freezing import monitored_score


class Checkpointing(Callback):
    """Keeps the best epoch's weights and everything that is needed to go on.

    `best.ckpt` holds the weights only. `last.ckpt` holds all state, is written at the end of each epoch and, within an
    epoch, after `every_minutes`.

    Args:
        folder: where the files go.
        monitor: metric that chooses the best epoch; ties are broken by val/loss.
        every_minutes: longest time between two `last.ckpt` in minutes; 0: only at the end of each epoch.
        keep: how many `epoch-NNN.ckpt` to keep besides.
    """

    def __init__(self, *, folder: Path, monitor: str, every_minutes: float, keep: int) -> None:
        self.folder = folder
        self.monitor = monitor
        self.every_minutes = every_minutes
        self.keep = keep
        self.best: tuple[float, float] | None = None
        self.best_epoch = -1
        self._saved_at = time.monotonic()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._saved_at = time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write `last.ckpt` when the last one is too old."""
        if not may_stop_behind(batch_idx, trainer):
            return
        due = trainer.strategy.broadcast(
            bool(self.every_minutes) and time.monotonic() - self._saved_at >= 60 * self.every_minutes
        )
        if due:
            self.save_last(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write `best.ckpt` when this epoch is the best."""
        if trainer.sanity_checking:
            return
        score = monitored_score(trainer, self.monitor)
        if self.best is None or score > self.best:
            self.best, self.best_epoch = score, trainer.current_epoch
            save_checkpoint(trainer, self.folder / "best.ckpt", weights_only=True)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write `last.ckpt`, and the epoch's own file when such are kept."""
        self.save_last(trainer)
        if self.keep:
            save_checkpoint(trainer, self.folder / f"epoch-{trainer.current_epoch:03d}.ckpt", weights_only=False)
            if trainer.is_global_zero:
                for old in sorted(self.folder.glob("epoch-*.ckpt"))[: -self.keep]:
                    old.unlink()

    def save_last(self, trainer: Trainer) -> None:
        """Write `last.ckpt` now."""
        save_checkpoint(trainer, self.folder / "last.ckpt", weights_only=False)
        self._saved_at = time.monotonic()

    def state_dict(self) -> dict[str, Any]:
        """Return the best score so far."""
        return {"best": self.best, "best_epoch": self.best_epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the best score so far."""
        self.best, self.best_epoch = state_dict["best"], state_dict["best_epoch"]


def may_stop_behind(batch_idx: int, trainer: Trainer) -> bool:
    """Return whether a run that is stopped behind this batch can go on as if it had not been.

    Not behind an epoch's last batch: the resumed run would take the epoch for validated; the epoch's own checkpoint
    comes soon. And only behind an optimizer step: gradients that are being accumulated are in no checkpoint.
    """
    done = batch_idx + 1
    return done < trainer.num_training_batches and done % trainer.accumulate_grad_batches == 0


def save_checkpoint(trainer: Trainer, path: Path, *, weights_only: bool) -> None:
    """Save under a temporary name, read it back, and only then give it its name; all processes must call it.

    Raises:
        CheckpointError: it could not be written; the file of that name is still the one before.
    """
    temporary = path.with_name(f".{path.name}.writing")
    try:
        trainer.save_checkpoint(temporary, weights_only=weights_only)
        if trainer.is_global_zero:
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            read_checkpoint(temporary)
            os.replace(temporary, path)
    except (OSError, RuntimeError, CheckpointError) as error:
        temporary.unlink(missing_ok=True)
        raise CheckpointError(
            f"the checkpoint {path} could not be saved: {error}\nan earlier one of that name is intact; make room or "
            "check the folder's permissions, then go on with --resume"
        ) from error
