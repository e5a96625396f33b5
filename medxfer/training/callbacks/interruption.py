"""Ctrl-C: a flag, a checkpoint at the next batch boundary, then the end."""

import os
import signal
from types import FrameType
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from medxfer.training.callbacks.checkpointing import Checkpointing, may_stop_behind


class TrainingInterruptedError(Exception):
    """The user pressed Ctrl-C; `last.ckpt` holds everything up to the last batch."""


class Interruption(Callback):
    """Turns the first Ctrl-C into a checkpoint and a `TrainingInterruptedError`; a second one ends at once.

    The handler only sets a flag: saving inside a signal handler can hang (Lightning #21406).

    Args:
        checkpointing: writes the checkpoint.
    """

    def __init__(self, *, checkpointing: Checkpointing) -> None:
        self.checkpointing = checkpointing
        self.asked = False
        self._before: Any = None
        self._process = os.getpid()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take over Ctrl-C; earlier, Lightning would take this handler for the user's and put it back at the end."""
        self._before = signal.signal(signal.SIGINT, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            return  # a worker, which inherited the handler
        self.asked = True
        signal.signal(signal.SIGINT, self._before)
        print("\nstopping after this batch; press Ctrl-C again to stop at once", flush=True)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save and end at the next batch that allows it."""
        if may_stop_behind(batch_idx, trainer):
            self._end_if_asked(trainer, save=True)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End after the epoch's own checkpoint; this callback stands behind `Checkpointing`."""
        self._end_if_asked(trainer, save=False)

    def _end_if_asked(self, trainer: Trainer, *, save: bool) -> None:
        if trainer.strategy.reduce_boolean_decision(self.asked, all=False):
            if save:
                self.checkpointing.save_last(trainer)
            raise TrainingInterruptedError

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give Ctrl-C back."""
        self._restore()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Give Ctrl-C back."""
        self._restore()

    def _restore(self) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)
            self._before = None
