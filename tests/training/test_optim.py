"""Parameter groups, learning rates and the schedule, against their formulas."""

import math

import pytest
import torch
from torch import nn

from medxfer.config import OptimConfig
from medxfer.training.optim import OPTIMIZERS, build_optimizer, parameter_groups, schedule_factor

SCHEDULE = {"schedule": "cosine", "total": 10, "warmup": 2, "step_epochs": 3, "step_factor": 0.5}


def blocks(count: int) -> dict[str, nn.Module]:
    return {f"block{i}": nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.BatchNorm2d(1)) for i in range(count)}


def test_discriminative_learning_rates():
    suffix = blocks(4)
    groups = parameter_groups(
        suffix, nn.Linear(2, 2), lr=0.1, backbone_lr_scale=0.5, layer_decay=0.8, weight_decay=0.01
    )
    rates = {group["name"]: group["lr"] for group in groups}
    for distance, name in enumerate(["block3", "block2", "block1", "block0"]):
        assert rates[f"{name}/weights"] == rates[f"{name}/biases"] == pytest.approx(0.1 * 0.5 * 0.8**distance)
    assert rates["head/weights"] == 0.1


def test_weight_decay_is_for_weights_only():
    groups = parameter_groups(blocks(2), nn.Linear(2, 2), lr=0.1, backbone_lr_scale=1, layer_decay=1, weight_decay=0.01)
    for group in groups:
        for parameter in group["params"]:
            assert group["weight_decay"] == (0.01 if parameter.ndim > 1 else 0.0)


def test_every_trained_parameter_is_in_one_group_and_no_frozen_one():
    suffix, head = blocks(3), nn.Linear(2, 2)
    suffix["block0"].requires_grad_(False)
    optimizer = build_optimizer(OptimConfig(), suffix=suffix, head=head)
    found = [id(p) for group in optimizer.param_groups for p in group["params"]]
    trained = [p for module in [*suffix.values(), head] for p in module.parameters() if p.requires_grad]
    assert sorted(found) == sorted(id(p) for p in trained)


@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_every_optimizer_takes_steps_downhill(name):
    torch.manual_seed(0)
    head = nn.Linear(3, 1)
    optimizer = build_optimizer(OptimConfig(name=name, lr=0.05), suffix={}, head=head)
    inputs = torch.randn(32, 3)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = (head(inputs) - inputs.sum(dim=1, keepdim=True)).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]


def test_a_parameter_without_gradient_is_left_alone_by_decay():
    head = nn.Linear(2, 2)
    sleeping = blocks(1)
    optimizer = build_optimizer(OptimConfig(lr=0.5, weight_decay=0.1), suffix=sleeping, head=head)
    before = sleeping["block0"][0].weight.detach().clone()
    head(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    assert torch.equal(sleeping["block0"][0].weight, before)
    assert not optimizer.state[sleeping["block0"][0].weight]


def test_warm_up_is_linear_and_cosine_ends_at_zero():
    assert schedule_factor(0.5, **SCHEDULE) == pytest.approx(0.25)
    assert schedule_factor(2.0, **SCHEDULE) == pytest.approx(1.0)
    assert schedule_factor(6.0, **SCHEDULE) == pytest.approx(0.5 * (1 + math.cos(math.pi * 0.5)))
    assert schedule_factor(10.0, **SCHEDULE) == pytest.approx(0.0)


def test_step_and_constant():
    step = {**SCHEDULE, "schedule": "step", "warmup": 0}
    assert [schedule_factor(e, **step) for e in (1.0, 3.0, 3.1, 6.1, 9.5)] == [1.0, 1.0, 0.5, 0.25, 0.125]
    assert schedule_factor(9.0, **{**SCHEDULE, "schedule": "constant"}) == 1.0


def test_warm_up_takes_at_most_half_of_a_short_stage():
    assert schedule_factor(0.5, **{**SCHEDULE, "total": 1}) == 1.0
