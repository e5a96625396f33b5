"""A run measures itself: images per second, the share of time spent waiting for data, and the seconds of each stage."""

import time
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from medxfer.training.stages import Stage, StagePlan


class Throughput(Callback):
    """Logs the speed of each epoch, and how long the stages took.

    `throughput/images_per_second` and `throughput/wait_share` belong to the epoch's training part, which ends behind
    its last batch; `throughput/val_images_per_second` to the validation behind it, without the metrics of the whole
    split. Images are those of all processes; seconds and waiting are the processes' mean. Of an epoch that was resumed
    in the middle, the part behind that point is measured. `wait_share` is `waited_s` of the training loader over the
    seconds, 0..1: what the loader counted since its `__iter__`. It is left out where a loader does not count.

    `seconds/head` and `seconds/finetune` are all the time between the fit's start and its end, validation and
    checkpoints included. They go with the checkpoint, so that a resumed run logs the stage as a whole, without what
    was lost behind the checkpoint.

    Args:
        plan: the stages.
    """

    def __init__(self, *, plan: StagePlan) -> None:
        self.plan = plan
        self.seconds: dict[Stage, float] = {}
        self._stage: Stage | None = None
        self._counted_until = 0.0
        self._figures: dict[str, float] = {}
        self._images = 0
        self._part_began = 0.0
        self._in_training_part = False

    @property
    def figures(self) -> dict[str, float]:
        """What the present epoch gave: images_per_second, wait_share, val_images_per_second, those that are known.

        Complete in every callback's `on_train_epoch_end`, whatever their order.
        """
        return dict(self._figures)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clocks; where a run is resumed in mid-epoch, Lightning does not announce the epoch."""
        self._counted_until = time.monotonic()
        self._stage = self.plan.stage(trainer.current_epoch)
        self._begin_epoch()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the epoch's clock, and log the stage that has ended."""
        self._count_seconds()
        before, self._stage = self._stage, self.plan.stage(trainer.current_epoch)
        if before is not None and before != self._stage:
            self._log(trainer, {f"seconds/{before}": self.seconds[before]})
        self._begin_epoch()

    def _begin_epoch(self) -> None:
        self._figures = {}
        self._images, self._part_began, self._in_training_part = 0, time.monotonic(), True

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the images."""
        self._images += len(batch["row"])
        if trainer.is_last_batch:
            self._end_training_part(trainer, pl_module)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End the training part, where its last batch was not known to be one."""
        self._end_training_part(trainer, pl_module)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Count the images."""
        self._images += len(batch["row"])

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compute the validation's speed."""
        if trainer.sanity_checking:
            self._images = 0
            return
        images, seconds, _ = self._end_part(trainer, pl_module)
        if images:
            self._figures["val_images_per_second"] = images / seconds

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the epoch's figures."""
        self._end_training_part(trainer, pl_module)
        self._log(trainer, {f"throughput/{name}": value for name, value in self._figures.items()})

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the seconds of each stage that was run, here or before this run was resumed."""
        self._count_seconds()
        self._stage = None
        self._log(trainer, {f"seconds/{stage}": value for stage, value in self.seconds.items()})

    def _end_training_part(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._in_training_part:
            return
        self._in_training_part = False
        waited = getattr(trainer.train_dataloader, "waited_s", None)
        images, seconds, all_waited = self._end_part(trainer, pl_module, waited=waited or 0.0)
        if images:
            self._figures["images_per_second"] = images / seconds
            if waited is not None:
                self._figures["wait_share"] = all_waited / seconds

    def _end_part(
        self, trainer: Trainer, pl_module: LightningModule, *, waited: float = 0.0
    ) -> tuple[float, float, float]:
        """Return images of all processes, mean seconds and mean seconds of waiting, and start the next part."""
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize(pl_module.device)  # kernels may still run
        now = time.monotonic()
        part = torch.tensor([self._images, now - self._part_began, waited], dtype=torch.float64)
        images, seconds, waited = trainer.strategy.reduce(part.to(pl_module.device), reduce_op="sum").tolist()
        self._images, self._part_began = 0, now
        return images, seconds / trainer.world_size, waited / trainer.world_size

    def _count_seconds(self) -> None:
        """Give the time since the last call to the stage that it was spent in."""
        now = time.monotonic()
        if self._stage is not None:
            self.seconds[self._stage] = self.seconds.get(self._stage, 0.0) + now - self._counted_until
        self._counted_until = now

    def _log(self, trainer: Trainer, values: dict[str, float]) -> None:
        if values and trainer.logger is not None and trainer.is_global_zero:
            trainer.logger.log_metrics(values, step=trainer.global_step)

    def state_dict(self) -> dict[str, Any]:
        """Return the seconds of the stages up to now."""
        self._count_seconds()
        return {"seconds": dict(self.seconds)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the seconds of the run that is resumed."""
        self.seconds = dict(state_dict["seconds"])
