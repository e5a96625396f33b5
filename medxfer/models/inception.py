"""Inception V3 (Szegedy 2016) as an ordered list of named blocks that can be cut between any two.

The modules and their names are torchvision's, so a state dict fits both ways. The auxiliary classifier and the
1000-class layer are left out: transfer does not use them.
"""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.profiler import record_function
from torchvision.models.inception import BasicConv2d, inception_v3

FEATURES = 2048
"""Number of pooled features, the width of the network's end."""

BLOCK_NAMES = (
    "Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "Conv2d_3b_1x1", "Conv2d_4a_3x3",
    "Mixed_5b", "Mixed_5c", "Mixed_5d", "Mixed_6a", "Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e",
    "Mixed_7a", "Mixed_7b", "Mixed_7c",
)  # fmt: skip
"""The blocks in the order in which a picture passes them."""

POOL_AFTER = {"Conv2d_2b_3x3": "maxpool1", "Conv2d_4a_3x3": "maxpool2"}
"""The poolings have no weights and belong to the block before them."""


class InceptionBackbone(nn.Module):
    """Inception V3 from normalised pictures to pooled features.

    Shapes: (B, 3, H, W) floating point with H, W ≥ 75 → (B, 2048).

    Example:
        >>> backbone = InceptionBackbone().eval()
        >>> backbone(torch.zeros(1, 3, 75, 75)).shape
        torch.Size([1, 2048])
    """

    def __init__(self) -> None:
        super().__init__()
        whole = inception_v3(weights=None, aux_logits=False, transform_input=False, init_weights=False)
        for name in BLOCK_NAMES:
            self.add_module(name, whole.get_submodule(name))
            if name in POOL_AFTER:
                self.add_module(POOL_AFTER[name], whole.get_submodule(POOL_AFTER[name]))

    def blocks(self, names: Iterable[str]) -> list[nn.Module]:
        """Return the blocks of those names."""
        return [self.get_submodule(name) for name in names]

    def with_poolings(self, names: Iterable[str]) -> Iterator[tuple[str, nn.Module]]:
        """Yield the named blocks and the poolings that belong to them, with their names."""
        for name in names:
            yield name, self.get_submodule(name)
            if name in POOL_AFTER:
                yield POOL_AFTER[name], self.get_submodule(POOL_AFTER[name])

    @staticmethod
    def pool(x: Tensor) -> Tensor:
        """Average over the picture: (B, 2048, H, W) → (B, 2048)."""
        return x.mean(dim=(2, 3))  # adaptive average pooling has no deterministic gradient on a GPU

    def forward(self, x: Tensor) -> Tensor:
        """Normalised pictures (B, 3, H, W) → pooled features (B, 2048)."""
        return self.pool(run_blocks(self, x, BLOCK_NAMES))


def run_blocks(holder: nn.Module, x: Tensor, names: Iterable[str]) -> Tensor:
    """Pass activations through blocks and the poolings that belong to them.

    Args:
        holder: has the blocks and poolings as submodules of those names.
        x: (B, C, H, W), what the first named block expects.
        names: consecutive names of `BLOCK_NAMES`.

    Returns:
        (B, C', H', W').
    """
    for name in names:
        with record_function(f"block/{name}"):
            x = holder.get_submodule(name)(x)
            if name in POOL_AFTER:
                x = holder.get_submodule(POOL_AFTER[name])(x)
    return x


def conv_and_norm(module: nn.Module) -> tuple[nn.Conv2d, nn.BatchNorm2d] | None:
    """Return the two parts of a convolution → batch norm → ReLU; None of any other module."""
    return (module.conv, module.bn) if isinstance(module, BasicConv2d) else None


def initialize_from_scratch(backbone: InceptionBackbone, *, generator: torch.Generator) -> None:
    """Initialise a backbone that is trained whole: convolutions by He normal, fan out (He 2015); norms by 1 and 0."""
    for module in backbone.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu", generator=generator)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)


def split_blocks(freeze_until: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Cut the list of blocks behind `freeze_until`.

    Args:
        freeze_until: a block's name, `none` or `all`.

    Returns:
        The names of the frozen prefix and of the tuned suffix.

    Raises:
        ValueError: no such block.

    Example:
        >>> split_blocks("Mixed_7b")[1]
        ('Mixed_7c',)
    """
    if freeze_until == "none":
        return (), BLOCK_NAMES
    cut = len(BLOCK_NAMES) if freeze_until == "all" else BLOCK_NAMES.index(freeze_until) + 1
    return BLOCK_NAMES[:cut], BLOCK_NAMES[cut:]
