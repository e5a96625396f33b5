"""The cut network: what is frozen stays frozen, and preprocessing belongs to the network."""

import pytest
import torch
from torch import nn

from medxfer.models.inception import BLOCK_NAMES
from medxfer.models.transfer import NetworkSpec, TransferNet, count_parameters


def make_net(**changes: object) -> TransferNet:
    settings = {
        "outputs": 3, "hidden_features": 16, "dropout": 0.5, "freeze_until": "Mixed_6e", "suffix_batch_norm": "frozen",
        "input_mean": (0.5, 0.5, 0.5), "input_std": (0.5, 0.5, 0.5), **changes,
    }  # fmt: skip
    torch.manual_seed(0)
    net = TransferNet(NetworkSpec(**settings))
    generator = torch.Generator().manual_seed(5)
    for module in net.modules():  # statistics that differ from any batch's
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(generator=generator)
            module.running_var.uniform_(0.5, 2.0, generator=generator)
    return net


def pictures(channels: int = 1, count: int = 4, size: int = 75) -> torch.Tensor:
    shape = (count, channels, size, size)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(7))


def test_one_channel_equals_three_equal_channels():
    net = make_net(fold=False).eval()
    grey = pictures()
    with torch.no_grad():
        assert torch.equal(net(grey), net(grey.expand(-1, 3, -1, -1).contiguous()))


def test_preprocessing_is_x_over_255_minus_mean_over_std():
    net = make_net(input_mean=(0.1, 0.2, 0.3), input_std=(0.4, 0.5, 0.6))
    image = pictures(3)
    mean, std = (torch.tensor(v, dtype=torch.float64).view(1, 3, 1, 1) for v in ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6)))
    torch.testing.assert_close(net.normalize(image).double(), (image.double() / 255 - mean) / std, atol=1e-6, rtol=0)


def test_imagenet_preprocessing_is_x_over_127_5_minus_1():
    image = pictures(3)
    torch.testing.assert_close(make_net().normalize(image), image.float() / 127.5 - 1, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    "images",
    [torch.zeros(2, 1, 75, 75), torch.zeros(2, 2, 75, 75, dtype=torch.uint8), torch.zeros(75, 75, dtype=torch.uint8)],
)
def test_other_pictures_are_refused_with_their_shape(images):
    with pytest.raises(ValueError, match=r"images must be uint8 .* found torch"):
        make_net()(images)


@pytest.mark.parametrize("freeze_until", ["none", "Conv2d_2b_3x3", "Mixed_5d", "Mixed_6e", "all"])
@pytest.mark.parametrize("suffix_batch_norm", ["frozen", "train"])
def test_modes_of_frozen_and_tuned_blocks(freeze_until, suffix_batch_norm):
    net = make_net(freeze_until=freeze_until, suffix_batch_norm=suffix_batch_norm).train()
    frozen = set(net.prefix_names)
    for name in BLOCK_NAMES:
        block = net.backbone.get_submodule(name)
        norms = [m for m in block.modules() if isinstance(m, nn.BatchNorm2d)]
        trains = name not in frozen and suffix_batch_norm == "train"
        assert all(norm.training == trains for norm in norms)
        assert all(p.requires_grad == (name not in frozen) for p in block.parameters())
    assert net.head.training
    net.set_head_only(True)
    assert not any(m.training for m in net.backbone.modules())
    assert net.head.training
    assert all(p.requires_grad for block in net.suffix_blocks() for p in block.parameters())
    net.set_head_only(False)
    assert any(m.training for m in net.backbone.modules()) == (freeze_until != "all")


def test_backbone_outputs_and_buffers_are_the_same_in_both_modes():
    net = make_net(freeze_until="all")
    before = {k: v.clone() for k, v in net.backbone.state_dict().items()}
    with torch.no_grad():
        trained = net.train().to_pooled(net.to_cut(pictures()))
        evaluated = net.eval().to_pooled(net.to_cut(pictures()))
    assert torch.equal(trained, evaluated)
    assert all(torch.equal(before[k], v) for k, v in net.backbone.state_dict().items())


def test_head_only_gives_the_tuned_blocks_no_gradient_and_moves_no_statistics():
    net = make_net(freeze_until="Mixed_5d", suffix_batch_norm="train").train()
    net.set_head_only(True)
    before = {k: v.clone() for k, v in net.backbone.state_dict().items()}
    net(pictures()).sum().backward()
    assert all(p.grad is None for p in net.backbone.parameters())
    assert all(p.grad is not None for p in net.head.parameters())
    assert all(torch.equal(before[k], v) for k, v in net.backbone.state_dict().items())


def test_only_the_suffix_gets_gradients():
    net = make_net(freeze_until="Mixed_6e").train()
    net(pictures()).sum().backward()
    assert all(p.grad is None for block in net.prefix_blocks() for p in block.parameters())
    assert all(p.grad is not None for block in net.suffix_blocks() for p in block.parameters())


def test_counts_of_parameters():
    frozen, trained = count_parameters(make_net(freeze_until="all"))
    assert frozen == 21_785_568  # torchvision's Inception V3 without its classifiers
    assert trained == 2048 * 16 + 16 + 16 * 3 + 3


def test_spec_survives_plain_types():
    spec = make_net().spec
    assert NetworkSpec.from_dict(spec.to_dict()) == spec
