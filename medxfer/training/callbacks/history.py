"""Writes `history.csv`: one row per epoch, continued on resume."""

import sys
import time
from pathlib import Path

import pandas as pd
from lightning.pytorch import Callback, LightningModule, Trainer

from medxfer.training.callbacks.throughput import Throughput
from medxfer.training.stages import StagePlan


class History(Callback):
    """Adds each epoch's stage, learning rate, loss, metrics, duration and speed to a CSV, and prints them in one line.

    Args:
        path: the CSV.
        plan: the stages.
        throughput: measures the speed; None: none is written.
    """

    def __init__(self, *, path: Path, plan: StagePlan, throughput: Throughput | None = None) -> None:
        self.path = path
        self.plan = plan
        self.throughput = throughput
        self._started = time.monotonic()
        self._epoch_started = time.monotonic()
        self._epochs_here = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clocks; where a run is resumed in mid-epoch, Lightning does not announce the epoch."""
        self._started = self._epoch_started = time.monotonic()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the epoch's clock."""
        self._epoch_started = time.monotonic()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write and print the epoch's row."""
        if not trainer.is_global_zero:
            return
        epoch = trainer.current_epoch
        seconds = time.monotonic() - self._epoch_started
        values = {name: float(value) for name, value in sorted(trainer.callback_metrics.items())}
        head_lr = max(g["lr"] for g in trainer.optimizers[0].param_groups if g["name"].startswith("head/"))
        row = {"epoch": epoch, "stage": self.plan.stage(epoch), "seconds": round(seconds, 2), "lr": head_lr, **values}
        if self.throughput is not None:
            known = self.throughput.figures
            row |= {name: round(known[name], 4) for name in ("images_per_second", "wait_share") if name in known}
        if trainer.logger is not None:
            trainer.logger.log_metrics({"epoch_seconds": seconds, "lr": head_lr}, step=trainer.global_step)
        table = pd.DataFrame([row])
        if self.path.is_file():
            before = pd.read_csv(self.path)
            table = pd.concat([before[before["epoch"] < epoch], table], ignore_index=True)
        temporary = self.path.with_name(f".{self.path.name}.writing")
        table.to_csv(temporary, index=False)
        temporary.replace(self.path)
        self._epochs_here += 1
        say = trainer.progress_bar_callback.print if trainer.progress_bar_callback is not None else print
        say(self._line(row))  # beside the bar, where there is one
        sys.stdout.flush()

    def _line(self, row: dict[str, float]) -> str:
        left = (self.plan.total_epochs - int(row["epoch"]) - 1) * (time.monotonic() - self._started) / self._epochs_here
        speed = row.get("images_per_second")
        shown = "" if speed is None else f"  {speed:.{0 if speed >= 10 else 1}f} images/s"
        return (
            f"epoch {int(row['epoch']) + 1}/{self.plan.total_epochs} {row['stage']}  train loss {row['train/loss']:.4f}"
            f"  val loss {row['val/loss']:.4f}  val auroc {row['val/auroc']:.4f}{shown}"
            f"  {row['seconds']:.0f} s, at most {clock(left)} left"
        )


def clock(seconds: float) -> str:
    """Write seconds as m:ss or h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
