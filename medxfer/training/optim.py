"""Parameter groups with discriminative learning rates, the optimizers, and the schedule as a pure function."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from medxfer.config import OptimConfig

Optimizer = torch.optim.Optimizer


def parameter_groups(
    suffix: dict[str, nn.Module], head: nn.Module, *, lr: float, backbone_lr_scale: float, layer_decay: float,
    weight_decay: float,
) -> list[dict[str, Any]]:  # fmt: skip
    """One group per block and kind of parameter: lr(block) = lr · backbone_lr_scale · layer_decay^distance.

    The distance is the number of blocks between a block and the head; the last block's is 0. Weight decay applies to
    weights, not to biases and batch norm.

    Args:
        suffix: the tuned blocks by name, bottom first.
        head: the new layers.
        lr: learning rate of the head.
        backbone_lr_scale: share of it for the last block.
        layer_decay: factor per block on the way down.
        weight_decay: L2 coefficient.

    Returns:
        Groups with `name`, `lr`, `base_lr` and `weight_decay`; none of them is empty.
    """
    rates: list[tuple[str, nn.Module, float]] = [
        (name, block, lr * backbone_lr_scale * layer_decay**distance)
        for distance, (name, block) in enumerate(reversed(suffix.items()))
    ]
    groups = []
    for name, module, rate in [*reversed(rates), ("head", head, lr)]:
        trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
        for kind, decay, members in (
            ("weights", weight_decay, [p for p in trained if p.ndim > 1]),
            ("biases", 0.0, [p for p in trained if p.ndim <= 1]),
        ):
            if members:
                groups.append(
                    {"params": members, "name": f"{name}/{kind}", "lr": rate, "base_lr": rate, "weight_decay": decay}
                )
    return groups


def _adamw(groups: list[dict[str, Any]], config: OptimConfig) -> Optimizer:
    return torch.optim.AdamW(groups, lr=config.lr, betas=(config.momentum, 0.999), fused=True)


def _sgd(groups: list[dict[str, Any]], config: OptimConfig) -> Optimizer:
    return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.momentum > 0, fused=True)


def _rmsprop(groups: list[dict[str, Any]], config: OptimConfig) -> Optimizer:
    # Decay and epsilon of Esteva 2017 (Nature 542:115), as in Inception's own training.
    return torch.optim.RMSprop(groups, lr=config.lr, alpha=0.9, eps=0.1, momentum=config.momentum)


OPTIMIZERS: dict[str, Callable[[list[dict[str, Any]], OptimConfig], Optimizer]] = {
    "adamw": _adamw,
    "sgd": _sgd,
    "rmsprop": _rmsprop,
}


def build_optimizer(config: OptimConfig, *, suffix: dict[str, nn.Module], head: nn.Module) -> Optimizer:
    """Build the optimizer over everything that is not frozen, for both stages."""
    groups = parameter_groups(
        suffix,
        head,
        lr=config.lr,
        backbone_lr_scale=config.backbone_lr_scale,
        layer_decay=config.layer_decay,
        weight_decay=config.weight_decay,
    )
    optimizer = OPTIMIZERS[config.name](groups, config)
    optimizer.register_step_post_hook(_note_changes)
    return optimizer


def _note_changes(optimizer: Optimizer, *_: Any) -> None:
    """Count a new version of each parameter, by which folded copies see that they are old: fused steps do not."""
    for group in optimizer.param_groups:
        torch.autograd.graph.increment_version(group["params"])


def schedule_factor(
    progress: float, *, schedule: str, total: float, warmup: float, step_epochs: int, step_factor: float
) -> float:
    """Return the factor on all learning rates at a point of a stage.

    Args:
        progress: epochs of the stage before the middle of this step, more than 0, less than `total`: at the end of a
            cosine the rate is 0, and a step there would be wasted.
        schedule: cosine, step or constant.
        total: epochs of the stage.
        warmup: epochs of linear warm-up; at most half of the stage is used.
        step_epochs: step: epochs between reductions.
        step_factor: step: factor of each reduction.

    Example:
        >>> schedule_factor(0.25, schedule="constant", total=4, warmup=0.5, step_epochs=1, step_factor=0.1)
        0.5
    """
    warmup = min(warmup, total / 2)
    if progress < warmup:
        return progress / warmup
    if schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (progress - warmup) / (total - warmup))))
    if schedule == "step":
        return step_factor ** int(max(0.0, progress - 1e-9) // step_epochs)
    return 1.0
