"""The LightningModule: one network, one loss, one optimizer, and what is logged of them."""

from collections.abc import Callable
from typing import Any, NotRequired, TypedDict, cast

import numpy as np
import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torchmetrics import Metric

from medxfer.models.transfer import LEVELS, TransferNet
from medxfer.models.weights import NETWORK_KEY


class Batch(TypedDict):
    """What the data module yields.

    One of `image`, uint8 (B, C, S, S) in 0..255; `cut`, activations at the cut (B, C', H', W'); and `pooled`, pooled
    features (B, 2048). `target`: int64 (B,) or float32 (B, K) of 1, 0, NaN. `row`: int64 (B,), the
    image's row in the manifest.
    """

    image: NotRequired[Tensor]
    cut: NotRequired[Tensor]
    pooled: NotRequired[Tensor]
    target: Tensor
    row: Tensor


class TransferTask(LightningModule):
    """Trains a `TransferNet`.

    Args:
        net: the network.
        loss: logits and targets → scalar.
        make_optimizer: tuned blocks by name and head → optimizer.
        metrics: probabilities and targets → values, over the validation split.
        task: binary, multiclass or multilabel.
        description: plain types that the checkpoint keeps so that the network can be built again.
        seed: dropout masks are drawn from it and from the epoch and the batch.
    """

    def __init__(
        self,
        *,
        net: TransferNet,
        loss: nn.Module,
        make_optimizer: Callable[..., torch.optim.Optimizer],
        metrics: Metric | None,
        task: str,
        description: dict[str, Any],
        seed: int,
    ) -> None:
        super().__init__()
        self.net = net
        self.loss = loss
        self.make_optimizer = make_optimizer
        self.metrics = metrics
        self.task = task
        self.description = description
        self.seed = seed
        self._val_outputs: list[tuple[Tensor, Tensor]] = []

    @classmethod
    def for_prediction(cls, net: TransferNet, *, task: str) -> "TransferTask":
        """Wrap a trained network; such a task cannot be fitted."""
        return cls(
            net=net,
            loss=nn.Identity(),
            make_optimizer=torch.optim.SGD,
            metrics=None,
            task=task,
            description={},
            seed=0,
        )

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Build all parameter groups of both stages at once, so that resuming finds them in any stage."""
        suffix = dict(zip(self.net.suffix_names, self.net.suffix_blocks(), strict=True))
        return self.make_optimizer(suffix=suffix, head=self.net.head)

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the norm of all gradients; Lightning's own refuses fused optimizers, for the sake of float16 scaling."""
        if gradient_clip_val:
            torch.nn.utils.clip_grad_norm_(self.net.parameters(), gradient_clip_val)

    def on_fit_start(self) -> None:
        """Train in training mode, whatever mode the network was built or loaded in; what is frozen stays so."""
        self.train()

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Make dropout a function of (seed, epoch, batch, rank), whatever happened before."""
        key = (self.seed, self.current_epoch, batch_idx, self.global_rank)
        torch.manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """One batch → its loss."""
        loss = self.loss(self._logits(batch), batch["target"])
        size = len(batch["row"])
        self.log("train/loss", loss, on_step=False, on_epoch=True, batch_size=size, sync_dist=True)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Add one batch to what the validation loss and metrics are computed from."""
        logits = self._logits(batch)
        self._val_outputs.append((logits, batch["target"]))
        self._metrics().update(self.probabilities(logits), batch["target"])

    def on_validation_epoch_end(self) -> None:
        """Log loss and metrics over the whole validation split, which do not depend on how it was cut into batches."""
        logits, targets = (torch.cat(parts) for parts in zip(*self._val_outputs, strict=True))
        self._val_outputs.clear()
        self.log("val/loss", self.loss(logits, targets), batch_size=len(logits), sync_dist=True)
        values = self._metrics().compute()
        self.log_dict({f"val/{name}": value for name, value in values.items()})
        self._metrics().reset()

    def predict_step(self, batch: Batch, batch_idx: int) -> tuple[Tensor, Tensor]:
        """One batch → rows (B,) and probabilities (B, K); a batch without a readable image → none of both."""
        if not len(batch["row"]):
            return batch["row"].cpu(), torch.empty(0, self.net.spec.outputs)
        return batch["row"].cpu(), self.probabilities(self._logits(batch)).cpu()

    def _logits(self, batch: Batch) -> Tensor:
        """Run what is left of the network above what the batch holds: (B, K) float32."""
        held = cast(dict[str, Tensor], batch)
        for level in LEVELS:
            if level in held:
                return self.net(held[level], level).float()
        raise ValueError(f"a batch must hold one of {', '.join(LEVELS)}, found {', '.join(batch)}")

    def _metrics(self) -> Metric:
        if self.metrics is None:
            raise RuntimeError("a task for prediction has no metrics")
        return self.metrics

    def probabilities(self, logits: Tensor) -> Tensor:
        """Logits (B, K) → probabilities (B, K): softmax over classes, sigmoid per label."""
        return logits.sigmoid() if self.task == "multilabel" else logits.softmax(dim=1)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what is needed to build the network again."""
        checkpoint[NETWORK_KEY] = self.description
