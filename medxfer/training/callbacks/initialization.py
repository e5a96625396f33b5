"""Initialises the new head, once."""

from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only

from medxfer.models.head import Head


class HeadInitialization(Callback):
    """Applies the chosen rule to the new head when training starts, and logs what it gave; a resumed run skips it.

    Args:
        head: the new layers.
        initialize: head and generator → (found, theoretical) standard deviation per layer.
        seed: of the generator.
    """

    def __init__(self, *, head: Head, initialize: Callable[..., dict[str, tuple[float, float]]], seed: int) -> None:
        self.head = head
        self.initialize = initialize
        self.seed = seed
        self.done = False

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the weights, unless this run has done it before."""
        if self.done:
            return
        generator = torch.Generator(device=self.head.hidden.weight.device).manual_seed(self.seed)
        found = self.initialize(self.head, generator=generator)
        self.done = True
        self._log(trainer, found)

    @rank_zero_only
    def _log(self, trainer: Trainer, found: dict[str, tuple[float, float]]) -> None:
        values = {}
        for layer, (actual, expected) in found.items():
            print(f"head {layer} layer: standard deviation {actual:.5f}, by the formula {expected:.5f}", flush=True)
            values[f"head_init/{layer}/std"] = actual
            values[f"head_init/{layer}/theoretical_std"] = expected
        if trainer.logger is not None:
            trainer.logger.log_metrics(values, step=0)

    def state_dict(self) -> dict[str, Any]:
        """Remember that it was done."""
        return {"done": self.done}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over whether it was done."""
        self.done = state_dict["done"]
