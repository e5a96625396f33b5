"""Exact rewrites of blocks that run in evaluation mode: the same function in fewer operations.

Batch norm with stored statistics is affine, so it folds into the convolution before it: with γ, β, μ, σ² of the norm
the kernel becomes w·γ/√(σ² + ε) and the bias β − μ·γ/√(σ² + ε). The stem has no padding, so preprocessing folds into
its kernel too: a grey channel that is replicated three times, less a mean, over a standard deviation, is one
convolution of raw pixels whose kernel is the sum over the input channels.
"""

import copy
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from medxfer.models.inception import InceptionBackbone, conv_and_norm, run_blocks

CENTRE = 128
"""Subtracted from raw pixels: −128 to 127 are exact in bfloat16, and small numbers round less in what follows."""


class FoldedConv(nn.Module):
    """Convolution with bias → ReLU, what is left of convolution → batch norm → ReLU.

    Shapes: (B, I, H, W) of the weight's type, or uint8 pictures, which are taken as p − 128 → (B, O, H', W').

    Args:
        weight: (O, I, h, w).
        bias: (O,).
        like: the convolution whose stride and padding apply.
    """

    def __init__(self, weight: Tensor, bias: Tensor, *, like: nn.Conv2d) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.contiguous(memory_format=torch.channels_last), requires_grad=False)
        self.bias = nn.Parameter(bias, requires_grad=False)
        self.stride, self.padding = like.stride, like.padding

    def forward(self, x: Tensor) -> Tensor:
        """Convolve, add the bias, and cut off below 0."""
        if x.dtype == torch.uint8:
            x = x.to(self.weight.dtype) - CENTRE
        return F.relu(F.conv2d(x, self.weight, self.bias, self.stride, self.padding), inplace=True)


class Preprocessing(NamedTuple):
    """Mean and standard deviation per channel that the weights expect of pixels on 0..1, (1, 3, 1, 1)."""

    mean: Tensor
    std: Tensor


class FoldedBlocks:
    """Consecutive blocks of a backbone as a folded copy: a view of their weights that is made anew when they change.

    It is no module, so it adds nothing to a state dict. It computes in autocast's type where that is on, else in the
    weights' own. Blocks that begin with the stem take raw pictures, uint8 (B, 1 or 3, H, W) in 0..255.

    Args:
        names: of the blocks, in order.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        self.compiler: dict[str, Any] | None = None
        self._copies: dict[tuple[torch.dtype, int], Any] = {}
        self._made_of: list[tuple[int, int]] = []

    def __call__(self, x: Tensor, backbone: InceptionBackbone, preprocessing: Preprocessing) -> Tensor:
        """Pass what the first block expects, or raw pictures, through the blocks.

        Args:
            x: (B, C, H, W).
            backbone: holds the blocks; they are taken as in evaluation mode.
            preprocessing: what the stem's weights expect.

        Returns:
            (B, C', H', W'), channels last.
        """
        made_of = [
            (tensor.data_ptr(), tensor._version)
            for block in backbone.blocks(self.names)
            for tensor in (*block.parameters(), *block.buffers())
        ]
        made_of += [(tensor.data_ptr(), tensor._version) for tensor in preprocessing]
        if made_of != self._made_of:
            self.forget()
            self._made_of = made_of
        device = x.device.type
        autocast = torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if autocast else preprocessing.mean.dtype
        key = (dtype, x.shape[1])
        if key not in self._copies:
            with torch.inference_mode(False), torch.no_grad():  # used in and out of inference mode
                blocks = _fold(
                    backbone, self.names, dtype, preprocessing if x.dtype == torch.uint8 else None, x.shape[1]
                )
            run = torch.compile(run_blocks, **self.compiler) if self.compiler is not None else run_blocks
            self._copies[key] = (run, blocks)
        run, blocks = self._copies[key]
        return run(blocks, x.contiguous(memory_format=torch.channels_last), self.names)

    def forget(self) -> None:
        """Make the copy anew at its next use, whatever the weights' own count of their versions says."""
        self._copies.clear()


def _fold(
    backbone: InceptionBackbone,
    names: Sequence[str],
    dtype: torch.dtype,
    preprocessing: Preprocessing | None,
    channels: int,
) -> nn.Module:
    blocks = nn.Module()
    for name, module in backbone.with_poolings(names):
        blocks.add_module(name, _folded(module, dtype))
    if preprocessing is not None:
        blocks.add_module(names[0], _folded_stem(backbone.get_submodule(names[0]), dtype, preprocessing, channels))
    return blocks.eval()


def _folded(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Copy a module with every convolution and its norm as one."""
    if (pair := conv_and_norm(module)) is not None:
        weight, bias = _fused(*pair)
        return FoldedConv(weight.to(dtype), bias.to(dtype), like=pair[0])
    folded = copy.copy(module)  # the same forward pass over other children
    folded._modules = {name: _folded(child, dtype) for name, child in module.named_children()}
    return folded


def _folded_stem(module: nn.Module, dtype: torch.dtype, preprocessing: Preprocessing, channels: int) -> nn.Module:
    """Fold the preprocessing of raw pixels p into the first convolution: (p/255 − mean)/std, one kernel and bias."""
    pair = conv_and_norm(module)
    if pair is None:
        raise ValueError("the first block must be a convolution with batch norm")
    weight, bias = _fused(*pair)
    mean, std = preprocessing.mean.double(), preprocessing.std.double()
    scaled = weight / (255.0 * std)
    kernel = scaled.sum(dim=1, keepdim=True) if channels == 1 else scaled
    rounded = kernel.to(dtype)
    # Of the rounded kernel, so that a picture of the mean gives the bias whatever the type.
    level = 255.0 * mean - CENTRE
    if channels == 1:
        # One grey level stands for all three means; what they differ by goes to the bias exactly.
        common = level.mean()
        bias = bias - (scaled * (level - common)).sum(dim=(1, 2, 3)) - (rounded.double() * common).sum(dim=(1, 2, 3))
    else:
        bias = bias - (rounded.double() * level).sum(dim=(1, 2, 3))
    return FoldedConv(rounded, bias.to(dtype), like=pair[0])


def _fused(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Return weight and bias of both in float64, so that only the last rounding is felt."""
    norm = copy.deepcopy(norm).double()
    if norm.running_mean is None or norm.running_var is None:
        raise ValueError("batch norm must have stored statistics")
    weight, bias = fuse_conv_bn_weights(
        conv.weight.double(), None, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
    )
    return weight.detach(), bias.detach()
