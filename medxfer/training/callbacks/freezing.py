"""Moves from stage to stage within one fit, sets the learning rates, and ends a stage when it no longer improves."""

import math
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from medxfer.config import OptimConfig
from medxfer.errors import ConfigError
from medxfer.models.transfer import TransferNet
from medxfer.training.optim import schedule_factor
from medxfer.training.stages import StagePlan


class Stages(Callback):
    """Freezes the whole backbone in the head stage and only the prefix in the fine-tuning stage.

    Nothing depends on what was called before: stage and learning rates are functions of epoch, batch and the plan.

    Args:
        net: the network.
        plan: the stages.
        optim: the schedule's settings.
        patience: validations without improvement that end a stage.
        monitor: the metric that must improve; ties are broken by val/loss.
    """

    def __init__(self, *, net: TransferNet, plan: StagePlan, optim: OptimConfig, patience: int, monitor: str) -> None:
        self.net = net
        self.plan = plan
        self.optim = optim
        self.patience = patience
        self.monitor = monitor
        self.best: tuple[float, float] | None = None
        self.waited = 0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Tell the trainer where the plan ends."""
        trainer.fit_loop.max_epochs = self.plan.total_epochs

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Freeze what this epoch's stage freezes, and set every group's learning rate for this batch.

        Not at the epoch's start, which Lightning does not announce where a run is resumed in mid-epoch.
        """
        epoch = trainer.current_epoch
        before, total = self.plan.position(epoch)
        head_only = self.plan.stage(epoch) == "head"
        if self.net.head_only != head_only:
            self.net.set_head_only(head_only)
        steps = math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches)
        factor = schedule_factor(
            before + (batch_idx // trainer.accumulate_grad_batches + 0.5) / steps,
            schedule=self.optim.schedule,
            total=total,
            warmup=self.optim.warmup_epochs,
            step_epochs=self.optim.step_epochs,
            step_factor=self.optim.step_factor,
        )
        for group in trainer.optimizers[0].param_groups:
            asleep = head_only and not group["name"].startswith("head/")
            group["lr"] = 0.0 if asleep else group["base_lr"] * factor

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count validations without improvement, and end the stage when there were too many."""
        if trainer.sanity_checking:
            return
        epoch = trainer.current_epoch
        score = monitored_score(trainer, self.monitor)
        if self.best is None or score > self.best:
            self.best, self.waited = score, 0
        else:
            self.waited += 1
        before, total = self.plan.position(epoch)
        ended = self.waited >= self.patience
        if ended or before + 1 == total:
            self.best, self.waited = None, 0
            self.plan.end_stage(epoch)
            trainer.fit_loop.max_epochs = self.plan.total_epochs

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs."""
        return {"plan": self.plan.state_dict(), "best": self.best, "waited": self.waited}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the state of the run that is resumed."""
        self.plan.load_state_dict(state_dict["plan"])
        self.best, self.waited = state_dict["best"], state_dict["waited"]


def monitored_score(trainer: Trainer, monitor: str) -> tuple[float, float]:
    """Return (monitored metric, −val/loss), larger is better in both; an undefined metric is worse than any other.

    Raises:
        ConfigError: the loss is not finite: training has diverged.
    """
    metrics = trainer.callback_metrics
    if not torch.isfinite(metrics["val/loss"]):
        raise ConfigError(
            f"training diverged: the validation loss of epoch {trainer.current_epoch + 1} is {metrics['val/loss']:g}; "
            "lower optim.lr, or limit the gradients by optim.gradient_clip. The best checkpoint before it is kept"
        )
    value = float(metrics[monitor])
    values = (-value if monitor == "val/loss" else value, -float(metrics["val/loss"]))
    first, second = (torch.nan_to_num(torch.tensor(v), nan=-torch.inf).item() for v in values)
    return first, second
