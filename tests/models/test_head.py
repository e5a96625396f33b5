"""The new head and the rule that initialises it, against the formulas of the papers."""

import math

import pytest
import torch

from medxfer.models.head import Head, initialize_head, theoretical_std

SHAPES = {"hidden": (2048, 600), "output": (600, 400)}  # fan in, fan out: wide enough for a tight estimate


@pytest.fixture
def head() -> Head:
    return Head(hidden_features=600, outputs=400, dropout=0.5)


def _initialize(head: Head, **changes: object) -> dict[str, tuple[float, float]]:
    settings = {"method": "he", "mode": None, "distribution": "normal", "std": 0.01, "bias": 0.0, **changes}
    return initialize_head(head, generator=torch.Generator().manual_seed(3), **settings)


@pytest.mark.parametrize("distribution", ["normal", "uniform"])
@pytest.mark.parametrize(
    ("method", "mode", "variance"),
    [
        ("he", None, lambda i, o: 2 / i),
        ("he", "fan_out", lambda i, o: 2 / o),
        ("he", "average", lambda i, o: 4 / (i + o)),
        ("xavier", None, lambda i, o: 2 / (i + o)),
        ("xavier", "fan_in", lambda i, o: 1 / i),
        ("xavier", "fan_out", lambda i, o: 1 / o),
    ],
)
def test_weights_have_the_standard_deviation_of_the_formula(head, method, mode, variance, distribution):
    _initialize(head, method=method, mode=mode, distribution=distribution)
    for name, layer in head.layers().items():
        expected = math.sqrt(variance(*SHAPES[name]))
        assert float(layer.weight.detach().std()) == pytest.approx(expected, rel=0.01)
        assert abs(float(layer.weight.detach().mean())) < 0.01 * expected
        largest = float(layer.weight.detach().abs().max())
        assert (largest <= math.sqrt(3) * expected * 1.0001) == (distribution == "uniform")


@pytest.mark.parametrize(("method", "bounded"), [("small_normal", False), ("small_uniform", True)])
def test_small_methods_use_the_fixed_standard_deviation_in_both_layers(head, method, bounded):
    found = _initialize(head, method=method, std=0.02)
    for layer, (actual, expected) in found.items():
        assert expected == 0.02
        assert actual == pytest.approx(0.02, rel=0.01)
        largest = float(head.layers()[layer].weight.detach().abs().max())
        assert (largest <= math.sqrt(3) * 0.02 * 1.0001) == bounded


@pytest.mark.parametrize("bias", [0.0, 0.1])
def test_biases_are_what_was_set(head, bias):
    _initialize(head, bias=bias)
    for layer in head.layers().values():
        assert torch.equal(layer.bias, torch.full_like(layer.bias, bias))


def test_agrees_with_torch_where_torch_has_the_rule(head):
    layer = head.hidden
    torch.nn.init.kaiming_normal_(layer.weight, mode="fan_in", nonlinearity="relu")
    assert float(layer.weight.detach().std()) == pytest.approx(
        theoretical_std(layer, method="he", mode=None, std=0.01), rel=0.01
    )
    torch.nn.init.xavier_normal_(layer.weight)
    assert float(layer.weight.detach().std()) == pytest.approx(
        theoretical_std(layer, method="xavier", mode=None, std=0.01), rel=0.01
    )


def test_same_seed_gives_the_same_weights(head):
    other = Head(hidden_features=600, outputs=400, dropout=0.5)
    _initialize(head)
    _initialize(other)
    assert torch.equal(head.hidden.weight, other.hidden.weight)


def test_layers_are_linear_relu_dropout_linear():
    head = Head(hidden_features=8, outputs=3, dropout=0.5).eval()
    features = torch.randn(5, 2048, generator=torch.Generator().manual_seed(0))
    hidden = (features @ head.hidden.weight.T + head.hidden.bias).clamp(min=0)
    torch.testing.assert_close(head(features), hidden @ head.output.weight.T + head.output.bias)
    head.train()
    assert not torch.equal(head(features), head(features))
