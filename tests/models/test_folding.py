"""The folded copy of blocks is the same function, of the same weights, in fewer operations."""

import copy

import pytest
import torch

from medxfer.models.transfer import NetworkSpec, TransferNet
from medxfer.training.optim import OptimConfig, build_optimizer
from tests.conftest import SIZE_PX

MEAN, STD = (0.3, 0.5, 0.6), (0.2, 0.3, 0.25)


def make_net(source, *, fold: bool = True, freeze_until: str = "Mixed_6e", **changes: object) -> TransferNet:
    from medxfer.models.weights import load_source

    settings = {
        "outputs": 2, "hidden_features": 8, "dropout": 0.5, "suffix_batch_norm": "frozen", "input_mean": MEAN,
        "input_std": STD, **changes,
    }  # fmt: skip
    torch.manual_seed(0)
    net = TransferNet(NetworkSpec(freeze_until=freeze_until, fold=fold, **settings))
    state = load_source(str(source)).state_dict
    assert state is not None
    net.backbone.load_state_dict(state)
    return net.eval()


def pictures(channels: int, count: int = 4) -> torch.Tensor:
    generator = torch.Generator().manual_seed(channels)
    coarse = torch.rand(count, channels, 9, 9, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, SIZE_PX, mode="bicubic").clamp(0, 1)
    return (255 * smooth).round().to(torch.uint8)


def error(found: torch.Tensor, exact: torch.Tensor) -> float:
    return float((found.double() - exact).norm() / exact.norm())


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("freeze_until", ["none", "Conv2d_1a_3x3", "Mixed_6e"])
def test_in_float32_the_error_is_at_most_twice_that_of_the_unfolded_network(source, channels, freeze_until):
    images = pictures(channels)
    folded, unfolded = (make_net(source, fold=fold, freeze_until=freeze_until) for fold in (True, False))
    with torch.no_grad():
        double = copy.deepcopy(unfolded).double()
        exact = double.to_cut(images)
        if freeze_until != "none":
            assert error(folded.to_cut(images), exact) <= 2 * error(unfolded.to_cut(images), exact)
        exact = double.to_pooled(exact)
        found, before = (net.to_pooled(net.to_cut(images)) for net in (folded, unfolded))
    assert error(found, exact) <= 2 * error(before, exact) < 1e-4


@pytest.mark.parametrize("channels", [1, 3])
def test_in_bfloat16_both_ways_are_within_its_rounding(source, channels):
    images = pictures(channels)
    with torch.no_grad():
        exact = make_net(source, fold=False).double()
        exact = exact.to_pooled(exact.to_cut(images))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            nets = [make_net(source, fold=fold) for fold in (True, False)]
            folded, unfolded = (net.to_pooled(net.to_cut(images)) for net in nets)
        assert folded.dtype == unfolded.dtype == torch.bfloat16
        assert error(folded, exact) < 4 * error(unfolded, exact) < 1


def test_a_grey_channel_equals_three_equal_ones(source):
    net, grey = make_net(source), pictures(1)
    with torch.no_grad():
        exact = make_net(source, fold=False).double().to_cut(grey.expand(-1, 3, -1, -1))
        assert error(net.to_cut(grey), exact) < 1e-5
        assert error(net.to_cut(grey.expand(-1, 3, -1, -1)), exact) < 1e-5


@pytest.mark.parametrize("fold", [True, False])
@pytest.mark.parametrize("precision", ["32", "bf16"])
def test_what_an_image_gives_does_not_depend_on_its_batch(source, fold, precision):
    net, images = make_net(source, fold=fold), pictures(1)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
        cut = net.to_cut(images)
        pooled = net.to_pooled(cut)
        for some in (slice(0, 1), slice(1, 4), slice(3, 4)):
            assert torch.equal(net.to_cut(images[some]), cut[some])
            assert torch.equal(net.to_pooled(cut[some]), pooled[some])


@pytest.mark.parametrize("switched", [True, False])
@pytest.mark.parametrize("name", ["adamw", "sgd", "rmsprop"])
def test_the_copy_follows_the_weights_through_training(source, name, switched):
    net, images = make_net(source), pictures(1)
    with torch.no_grad():
        before = net(images)
    net.train()
    suffix = dict(zip(net.suffix_names, net.suffix_blocks(), strict=True))
    optimizer = build_optimizer(OptimConfig(name=name, lr=1e-4), suffix=suffix, head=net.head)
    net(images).square().sum().backward()
    if not switched:
        net.eval()
        with torch.no_grad():
            net(images)
    optimizer.step()
    net.eval()
    with torch.no_grad():
        after = net(images)
        fresh = make_net(source)
        fresh.load_state_dict(net.state_dict())
        assert torch.equal(fresh(images), after)
        assert not torch.equal(before, after)


@pytest.mark.parametrize("name", ["backbone.Conv2d_1a_3x3.bn.running_mean", "backbone.Mixed_7c.branch1x1.conv.weight",
                                  "input_mean", "input_std"])  # fmt: skip
def test_the_copy_follows_weights_that_are_loaded(source, name):
    net, images = make_net(source), pictures(1)
    with torch.no_grad():
        before = net(images)
        state = {key: value.clone() for key, value in net.state_dict().items()}
        state[name] = state[name] * 1.5 + 0.1
        net.load_state_dict(state)
        assert not torch.equal(net(images), before)


def test_folding_leaves_no_trace_in_what_is_saved_or_trained(source):
    folded, unfolded = make_net(source), make_net(source, fold=False)
    with torch.no_grad():
        folded(pictures(1))
    assert folded.state_dict().keys() == unfolded.state_dict().keys()
    assert [name for name, _ in folded.named_parameters()] == [name for name, _ in unfolded.named_parameters()]
    assert all(torch.equal(value, unfolded.state_dict()[key]) for key, value in folded.state_dict().items())


def test_the_tuned_blocks_are_trained_as_they_are(source):
    """Gradients of convolution and norm alike, the same as without folding but for the prefix's rounding."""
    images, grads = pictures(1), []
    for fold in (True, False):
        net = make_net(source, fold=fold, dropout=0.0).train()
        net(images).square().sum().backward()
        grads.append({name: p.grad for name, p in net.named_parameters() if p.requires_grad})
    assert all(grad is not None for grad in grads[0].values())
    for name, grad in grads[0].items():
        torch.testing.assert_close(grad, grads[1][name], rtol=1e-3, atol=1e-4 * float(grads[1][name].abs().max()))


def test_gradients_reach_the_tuned_blocks_in_evaluation_mode_too(source):
    net = make_net(source)
    net(pictures(1)).sum().backward()
    assert all(p.grad is not None for block in net.suffix_blocks() for p in block.parameters())


def test_a_copy_made_in_inference_mode_serves_training(source):
    net, images = make_net(source), pictures(1)
    with torch.inference_mode():
        net(images)
    net.train()
    net(images).sum().backward()


def test_stages_share_one_network(source):
    net, images = make_net(source, dropout=0.0).train(), pictures(1)
    tuned = net(images)
    net.set_head_only(True)
    alone = net(images)
    assert net.to_pooled(net.to_cut(images)).grad_fn is None
    torch.testing.assert_close(tuned, alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("level", ["image", "cut", "pooled"])
def test_every_level_gives_the_same_logits(source, level):
    net, images = make_net(source), pictures(1)
    with torch.no_grad():
        x = {"image": images, "cut": net.to_cut(images)}
        x["pooled"] = net.to_pooled(x["cut"])
        assert torch.equal(net(x[level], level), net(images))


@pytest.mark.filterwarnings("ignore:.*will be ignored")
def test_a_compiled_network_is_captured_whole_and_gives_the_same(source):
    """Captured and run as it is: the code that a compiler would make of it takes minutes."""
    images, found, graphs = pictures(1), [], []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    for compiled in (False, True):
        net = make_net(source, dropout=0.0)
        if compiled:
            with torch.no_grad():
                net(images)  # the copies that this makes are not used any more
            net.compile(backend=backend, fullgraph=True)
        with torch.no_grad():
            evaluated = net(images)
        net.train()
        trained = net(images)
        trained.sum().backward()
        found.append((evaluated, trained, net.backbone.get_parameter("Mixed_7a.branch3x3_1.conv.weight").grad))
    assert len(graphs) >= 3  # prefix, suffix in evaluation, suffix in training
    for plain, compiled in zip(*found, strict=True):
        torch.testing.assert_close(compiled, plain)
