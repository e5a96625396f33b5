import functools
from dataclasses import replace

import pytest
import torch

from medxfer.models.head import initialize_head
from medxfer.training.callbacks.initialization import HeadInitialization
from medxfer.training.stages import StagePlan
from tests.models.test_transfer import make_net
from tests.training.fixtures import OPTIM, fit

RULE = functools.partial(initialize_head, method="he", mode=None, distribution="normal", std=0.01, bias=0.25)


def callback(net: torch.nn.Module) -> HeadInitialization:
    return HeadInitialization(head=net.head, initialize=RULE, seed=3)


def still(net: torch.nn.Module, folder, *more) -> None:
    """Fit with a learning rate of nearly nothing."""
    fit(net, folder, *more, plan=StagePlan(1, 0), optim=replace(OPTIM, lr=1e-30, weight_decay=0.0))


def test_draws_the_head_once_by_the_rule_and_nothing_else(tmp_path, capsys):
    net = make_net(outputs=2, freeze_until="all", hidden_features=64)
    backbone = {name: tensor.clone() for name, tensor in net.backbone.state_dict().items()}
    still(net, tmp_path, callback(net))
    assert float(net.head.hidden.weight.detach().std()) == pytest.approx((2 / 2048) ** 0.5, rel=0.02)
    assert torch.equal(net.head.hidden.bias, torch.full((64,), 0.25))
    assert all(torch.equal(tensor, backbone[name]) for name, tensor in net.backbone.state_dict().items())
    assert "by the formula 0.03125" in capsys.readouterr().out


def test_a_resumed_run_keeps_its_head(tmp_path):
    net = make_net(outputs=2, freeze_until="all")
    first = callback(net)
    still(net, tmp_path, first)
    resumed = callback(net)
    resumed.load_state_dict(first.state_dict())
    with torch.no_grad():
        net.head.hidden.weight.fill_(0.5)
    resumed.on_fit_start(None, None)
    assert torch.equal(net.head.hidden.weight, torch.full_like(net.head.hidden.weight, 0.5))


def test_the_seed_alone_decides(tmp_path):
    first, second = make_net(outputs=2, freeze_until="all"), make_net(outputs=2, freeze_until="all", dropout=0.1)
    for number, net in enumerate((first, second)):
        torch.manual_seed(number)
        (tmp_path / str(number)).mkdir()
        still(net, tmp_path / str(number), callback(net))
    assert torch.equal(first.head.hidden.weight, second.head.hidden.weight)
