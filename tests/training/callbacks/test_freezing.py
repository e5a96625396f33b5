import pytest
import torch
from lightning.pytorch import Callback

from medxfer.config import OptimConfig
from medxfer.errors import ConfigError
from medxfer.training.callbacks.freezing import Stages, monitored_score
from medxfer.training.optim import schedule_factor
from medxfer.training.stages import StagePlan
from tests.models.test_transfer import make_net
from tests.training.fixtures import OPTIM, fit, make_feed


class Watch(Callback):
    """Notes stage and learning rates of every batch."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, bool, dict[str, float]]] = []

    def on_train_batch_end(self, trainer, pl_module, *_) -> None:
        rates = {group["name"]: group["lr"] for group in trainer.optimizers[0].param_groups}
        self.seen.append((trainer.current_epoch, pl_module.net.head_only, rates))


def test_learning_rates_follow_stage_block_and_schedule(tmp_path):
    optim = OptimConfig(lr=0.01, backbone_lr_scale=0.1, layer_decay=0.5, warmup_epochs=0.5)
    watch = Watch()
    fit(make_net(outputs=2, freeze_until="Mixed_7a"), tmp_path, watch, plan=StagePlan(1, 2), optim=optim)
    assert [(epoch, head_only) for epoch, head_only, _ in watch.seen] == [(0, True)] * 3 + [(1, False)] * 3 + [
        (2, False)
    ] * 3
    for step, (epoch, head_only, rates) in enumerate(watch.seen):
        total, progress = (1, (step + 0.5) / 3) if epoch == 0 else (2, (step - 2.5) / 3)
        factor = schedule_factor(progress, schedule="cosine", total=total, warmup=0.5, step_epochs=1, step_factor=1)
        assert rates["head/weights"] == pytest.approx(0.01 * factor)
        for block, scale in (("Mixed_7c", 0.1), ("Mixed_7b", 0.05)):
            expected = 0.0 if head_only else 0.01 * scale * factor
            assert rates[f"{block}/weights"] == pytest.approx(expected)
            assert rates[f"{block}/biases"] == pytest.approx(expected)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_no_step_is_wasted_on_a_learning_rate_of_nothing(tmp_path, accumulate):
    """One optimizer step per stage."""
    watch = Watch()
    feed = make_feed(train=12, batch_size=12 // accumulate)
    fit(
        make_net(outputs=2, freeze_until="Mixed_7c"), tmp_path, watch, plan=StagePlan(1, 0), feed=feed,
        accumulate=accumulate,
    )  # fmt: skip
    assert {rates["head/weights"] for _, _, rates in watch.seen} == {OPTIM.lr}


def test_a_head_stage_that_is_resumed_in_mid_epoch_is_still_one(tmp_path):
    """Lightning does not announce the epoch again then."""
    net = make_net(outputs=2, freeze_until="Mixed_7b")
    watch = Watch()
    with pytest.raises(KeyError):
        fit(net, tmp_path, Stop(1), plan=StagePlan(1, 1), every_minutes=1e-9)
    net = make_net(outputs=2, freeze_until="Mixed_7b")
    fit(net, tmp_path, watch, plan=StagePlan(1, 1), resume=tmp_path / "last.ckpt")
    assert [(epoch, head_only) for epoch, head_only, _ in watch.seen] == 1 * [(0, True)] + 3 * [(1, False)]


class Stop(Callback):
    """Ends the training at a batch, by an error that nothing catches."""

    def __init__(self, batch: int) -> None:
        self.batch = batch

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        if batch_idx == self.batch:
            raise KeyError


def test_patience_ends_each_stage(tmp_path):
    """Without a learning rate nothing improves."""
    watch = Watch()
    optim = OptimConfig(lr=1e-30)
    plan = StagePlan(5, 5)
    fit(make_net(outputs=2, freeze_until="Mixed_7c"), tmp_path, watch, plan=plan, optim=optim, patience=2)
    assert [epoch for epoch, _, _ in watch.seen[::3]] == [0, 1, 2, 3, 4, 5]
    assert plan.head_end == 3
    assert plan.end == 6


def test_state_survives():
    net = make_net(outputs=2)
    stages = Stages(net=net, plan=StagePlan(2, 2, head_end=1), optim=OptimConfig(), patience=3, monitor="val/auroc")
    stages.best, stages.waited = (0.5, -1.0), 2
    other = Stages(net=net, plan=StagePlan(2, 2), optim=OptimConfig(), patience=3, monitor="val/auroc")
    other.load_state_dict(stages.state_dict())
    assert (other.best, other.waited, other.plan.head_end) == ((0.5, -1.0), 2, 1)


@pytest.mark.parametrize(
    ("monitor", "worse", "better"),
    [
        ("val/auroc", (0.7, 0.1), (0.8, 0.9)),
        ("val/auroc", (0.8, 0.9), (0.8, 0.5)),
        ("val/loss", (0.9, 0.5), (0.1, 0.4)),
        ("val/auroc", (float("nan"), 0.1), (0.0, 0.9)),
    ],
)
def test_larger_scores_are_better_and_ties_are_broken_by_the_loss(monitor, worse, better):
    assert monitored_score(Found(*worse), monitor) < monitored_score(Found(*better), monitor)


class Found:
    """What a trainer has computed."""

    current_epoch = 2

    def __init__(self, auroc: float, loss: float) -> None:
        self.callback_metrics = {"val/auroc": torch.tensor(auroc), "val/loss": torch.tensor(loss)}


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_training_that_diverged_is_told(loss):
    with pytest.raises(ConfigError, match=r"training diverged: the validation loss of epoch 3 .* lower optim\.lr"):
        monitored_score(Found(0.9, loss), "val/auroc")
