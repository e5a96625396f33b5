"""What a fit through the Trainer changes, and what it never changes."""

import pytest
import torch

from medxfer.config import OptimConfig
from medxfer.training.losses import ClassLoss
from medxfer.training.stages import StagePlan
from medxfer.training.task import TransferTask
from medxfer.training.trainer import build_predictor
from tests.models.test_transfer import make_net, pictures
from tests.training.fixtures import fit, make_feed, make_task


def prefix_outputs(net: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return net.to_cut(pictures())


@pytest.mark.parametrize("suffix_batch_norm", ["frozen", "train"])
@pytest.mark.parametrize(("head_epochs", "finetune_epochs"), [(1, 2), (2, 0), (0, 2)])
def test_frozen_outputs_and_buffers_are_bit_equal_after_training(
    tmp_path, head_epochs, finetune_epochs, suffix_batch_norm
):
    net = make_net(outputs=2, freeze_until="Mixed_7a", suffix_batch_norm=suffix_batch_norm)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    outputs = prefix_outputs(net)
    fit(net, tmp_path, plan=StagePlan(head_epochs, finetune_epochs))
    assert torch.equal(prefix_outputs(net.train()), outputs)
    assert torch.equal(prefix_outputs(net.eval()), outputs)
    after = net.state_dict()
    frozen = [name for name in before if name.startswith("backbone.") and name.split(".")[1] in net.prefix_names]
    assert len(frozen) > 300
    assert all(torch.equal(before[name], after[name]) for name in frozen)
    tuned = [name for name in before if name.startswith("backbone.") and name.split(".")[1] in net.suffix_names]
    weights = [name for name in tuned if "running" not in name and "num_batches" not in name]
    statistics = [name for name in tuned if "running" in name]
    moved = finetune_epochs > 0
    assert all(torch.equal(before[name], after[name]) is not moved for name in weights)
    moved = finetune_epochs > 0 and suffix_batch_norm == "train"
    assert all(torch.equal(before[name], after[name]) is not moved for name in statistics)
    assert not torch.equal(before["head.output.weight"], after["head.output.weight"])


def test_the_optimizer_holds_no_frozen_parameter_in_any_stage(tmp_path):
    net = make_net(outputs=2, freeze_until="Mixed_7b")
    trainer = fit(net, tmp_path, plan=StagePlan(1, 1))
    (optimizer,) = trainer.optimizers
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    frozen = {id(p) for block in net.prefix_blocks() for p in block.parameters()}
    trained = {id(p) for module in (*net.suffix_blocks(), net.head) for p in module.parameters()}
    assert held == trained
    assert not held & frozen
    assert not {id(p) for p in optimizer.state} & frozen


def test_the_head_stage_decays_nothing_but_the_head(tmp_path):
    """Weight decay acts without a gradient too, if an optimizer sees the parameter."""
    net = make_net(outputs=2, freeze_until="Mixed_7a")
    before = {name: tensor.clone() for name, tensor in net.backbone.state_dict().items()}
    fit(net, tmp_path, plan=StagePlan(2, 0))
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.backbone.state_dict().items())


def test_dropout_depends_on_seed_epoch_and_batch_only():
    def mask(epoch: int, batch_idx: int) -> torch.Tensor:
        class Placed(TransferTask):
            current_epoch = epoch
            global_rank = 0

        task = make_task(make_net(outputs=2))
        task.__class__ = Placed
        task.on_train_batch_start({}, batch_idx)
        return torch.nn.functional.dropout(torch.ones(64), 0.5)

    torch.manual_seed(11)
    first = mask(1, 2)
    torch.manual_seed(12)
    torch.rand(5)
    assert torch.equal(mask(1, 2), first)
    assert not torch.equal(mask(1, 3), first)
    assert not torch.equal(mask(2, 2), first)


def test_gradients_are_clipped_to_their_norm():
    net = make_net(outputs=2, freeze_until="all")
    task = make_task(net)
    optimizer = task.configure_optimizers()
    (1000 * net(pictures()).sum()).backward()
    task.configure_gradient_clipping(optimizer, gradient_clip_val=0.5)
    norm = torch.stack([p.grad.norm() for p in net.head.parameters()]).norm()
    assert norm == pytest.approx(0.5, rel=1e-4)


def test_probabilities_are_softmax_or_sigmoid():
    logits = torch.tensor([[1.0, -2.0, 0.5]])
    task = make_task(make_net())
    torch.testing.assert_close(task.probabilities(logits).sum(dim=1), torch.ones(1))
    task.task = "multilabel"
    torch.testing.assert_close(task.probabilities(logits), 1 / (1 + torch.exp(-logits)))


def test_train_loss_is_the_mean_over_images_not_over_batches(tmp_path):
    """A last batch of one image counts as one image."""
    net = make_net(outputs=2, freeze_until="all", dropout=0.0)
    feed = make_feed(train=5, batch_size=4)
    optim = OptimConfig(lr=1e-30, weight_decay=0.0, schedule="constant", warmup_epochs=0)
    trainer = fit(net, tmp_path, plan=StagePlan(1, 0), feed=feed, optim=optim)
    images = torch.from_numpy(feed.pictures[:5]).permute(0, 3, 1, 2)
    with torch.no_grad():
        expected = torch.nn.functional.cross_entropy(net.eval()(images), torch.from_numpy(feed.targets[:5]))
    assert float(trainer.callback_metrics["train/loss"]) == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.parametrize("batch_size", [1, 4, 9])
def test_val_loss_does_not_depend_on_the_batches(tmp_path, batch_size):
    """With weighted classes the mean of the batches' means would."""
    net = make_net(outputs=2, freeze_until="all", dropout=0.0)
    feed = make_feed(train=8, val=9, batch_size=batch_size)
    feed.targets[8:] = [0, 0, 0, 0, 0, 0, 0, 1, 0]
    weights = torch.tensor([1.0, 5.0])
    task = make_task(net)
    task.loss = ClassLoss(name="cross_entropy", weights=weights, label_smoothing=0.0, focal_gamma=0.0)
    trainer = build_predictor(accelerator="cpu", precision="32-true")
    trainer.validate(task, feed.loader("val"), verbose=False)
    images = torch.from_numpy(feed.pictures[8:]).permute(0, 3, 1, 2)
    with torch.no_grad():
        expected = torch.nn.functional.cross_entropy(net(images), torch.from_numpy(feed.targets[8:]), weights)
    assert float(trainer.callback_metrics["val/loss"]) == pytest.approx(float(expected), rel=1e-4)
