"""The two new fully connected layers on top of the backbone, and the rule that initialises them."""

import math

import torch
from torch import Tensor, nn

from medxfer.models.inception import FEATURES


class Head(nn.Module):
    """Linear(2048 → hidden) → ReLU → Dropout → Linear(hidden → outputs).

    Shapes: pooled features (B, 2048) → logits (B, outputs).
    """

    def __init__(self, *, hidden_features: int, outputs: int, dropout: float) -> None:
        super().__init__()
        self.hidden = nn.Linear(FEATURES, hidden_features)
        self.activation = nn.ReLU()
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(hidden_features, outputs)

    def forward(self, features: Tensor) -> Tensor:
        """Pooled features (B, 2048) → logits (B, outputs)."""
        return self.output(self.dropout(self.activation(self.hidden(features))))

    def layers(self) -> dict[str, nn.Linear]:
        """Return the two layers by name, bottom first."""
        return {"hidden": self.hidden, "output": self.output}


def theoretical_std(layer: nn.Linear, *, method: str, mode: str | None, std: float) -> float:
    """Return the standard deviation that a method gives a layer: g/√fan, or the fixed small one.

    g² is 2 for He (He et al. 2015, "Delving deep into rectifiers") and 1 for Xavier (Glorot and Bengio 2010, whose
    2/(fan_in + fan_out) is 1 over the average fan).

    Args:
        layer: the layer, whose weight is (fan_out, fan_in).
        method: he, xavier, small_normal or small_uniform.
        mode: fan_in, fan_out or average; None: fan_in for he, average for xavier.
        std: the value for the small methods.
    """
    if method in ("small_normal", "small_uniform"):
        return std
    fan_out, fan_in = layer.weight.shape
    fans = {"fan_in": fan_in, "fan_out": fan_out, "average": (fan_in + fan_out) / 2}
    fan = fans[mode or ("fan_in" if method == "he" else "average")]
    gain_squared = 2.0 if method == "he" else 1.0
    return math.sqrt(gain_squared / fan)


def initialize_head(
    head: Head,
    *,
    method: str,
    mode: str | None,
    distribution: str,
    std: float,
    bias: float,
    generator: torch.Generator,
) -> dict[str, tuple[float, float]]:
    """Draw both layers' weights anew and set their biases.

    Args:
        head: the head to change.
        method: he, xavier, small_normal or small_uniform.
        mode: which fan, see `theoretical_std`.
        distribution: normal, or uniform on ±√3·std; small_uniform is always uniform.
        std: standard deviation of the small methods.
        bias: value of every bias.
        generator: where the numbers come from.

    Returns:
        For each layer the standard deviation found and the theoretical one.
    """
    found = {}
    with torch.no_grad():
        for name, layer in head.layers().items():
            expected = theoretical_std(layer, method=method, mode=mode, std=std)
            if distribution == "uniform" or method == "small_uniform":
                bound = math.sqrt(3.0) * expected
                layer.weight.uniform_(-bound, bound, generator=generator)
            else:
                layer.weight.normal_(0.0, expected, generator=generator)
            layer.bias.fill_(bias)
            found[name] = (float(layer.weight.std()), expected)
    return found
