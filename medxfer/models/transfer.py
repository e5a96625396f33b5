"""The transfer network: uint8 pictures → frozen prefix → tuned suffix → new head → logits."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.profiler import record_function

from medxfer.config import ModelConfig
from medxfer.models.folding import FoldedBlocks, Preprocessing
from medxfer.models.head import Head
from medxfer.models.inception import InceptionBackbone, initialize_from_scratch, run_blocks, split_blocks
from medxfer.models.weights import SourceWeights

Level = Literal["image", "cut", "pooled"]
"""What a network is fed: pictures, activations at the cut, or pooled features."""

LEVELS: tuple[Level, ...] = get_args(Level)


@dataclass(frozen=True)
class NetworkSpec:
    """What is needed to build a network again, in plain types that a checkpoint can hold safely."""

    outputs: int
    hidden_features: int
    dropout: float
    freeze_until: str
    suffix_batch_norm: Literal["frozen", "train"]
    input_mean: tuple[float, float, float]
    input_std: tuple[float, float, float]
    fold: bool = True

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers, strings and lists."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "NetworkSpec":
        """Build from what `to_dict` returned."""
        plain: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**plain)


class TransferNet(nn.Module):
    """Inception V3 cut in a frozen prefix and a tuned suffix, with a new head.

    The prefix never changes: no gradient reaches it and its batch norm stays in evaluation mode whatever mode the
    network is in. While `head_only` is set the same holds for the suffix. Every parameter of the suffix requires a
    gradient from the start, and `head_only` runs it under `no_grad`: changing `requires_grad` later would leave
    gradients unsynchronised between processes.

    Shapes: uint8 (B, C, H, W) in 0..255 with C = 1 or 3 → logits (B, outputs). One channel is replicated three times.

    With `spec.fold` everything that is not trained runs as a folded copy (`medxfer.models.folding`): the prefix always,
    the suffix while `head_only` is set and wherever nothing is trained (evaluation, prediction). What an image gives
    there does not depend on its batch.

    Args:
        spec: cut, head and preprocessing; `input_mean` and `input_std` are on 0..1, per channel.
    """

    input_mean: Tensor
    input_std: Tensor

    def __init__(self, spec: NetworkSpec) -> None:
        super().__init__()
        self.spec = spec
        self.prefix_names, self.suffix_names = split_blocks(spec.freeze_until)
        self.backbone = InceptionBackbone()
        self.head = Head(hidden_features=spec.hidden_features, outputs=spec.outputs, dropout=spec.dropout)
        self.register_buffer("input_mean", _per_channel(spec.input_mean))
        self.register_buffer("input_std", _per_channel(spec.input_std))
        self.head_only = False
        self._folded_prefix = FoldedBlocks(self.prefix_names)
        self._folded_suffix = FoldedBlocks(self.suffix_names)
        self._run_tuned = run_blocks
        for block in self.prefix_blocks():
            block.requires_grad_(False)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.train(self.training)

    def prefix_blocks(self) -> list[nn.Module]:
        """Return the frozen blocks, bottom first."""
        return self.backbone.blocks(self.prefix_names)

    def suffix_blocks(self) -> list[nn.Module]:
        """Return the tuned blocks, bottom first."""
        return self.backbone.blocks(self.suffix_names)

    def set_head_only(self, head_only: bool) -> None:
        """Freeze the whole backbone (head stage), or only the prefix (fine-tuning stage)."""
        self.head_only = head_only
        self.train(self.training)

    def train(self, mode: bool = True) -> "TransferNet":
        """Change the mode of the head and of the tuned blocks; what is frozen stays in evaluation mode."""
        super().train(mode)
        self.backbone.eval()
        self._folded_suffix.forget()
        if mode and not self.head_only:
            for block in self.suffix_blocks():
                block.train()
                if self.spec.suffix_batch_norm == "frozen":
                    _batch_norm_to_eval(block)
        return self

    def normalize(self, images: Tensor) -> Tensor:
        """Bring pictures to the range the weights expect: (x/255 − mean)/std, three channels.

        Args:
            images: uint8 (B, C, H, W) in 0..255, C = 1 or 3.

        Returns:
            (B, 3, H, W) float32, channels last.
        """
        with record_function("block/normalize"):
            scaled = images.to(self.input_mean.dtype) / 255.0
            return ((scaled - self.input_mean) / self.input_std).contiguous(memory_format=torch.channels_last)

    def to_cut(self, images: Tensor) -> Tensor:
        """Run the frozen prefix, without gradient.

        Args:
            images: uint8 (B, C, H, W) in 0..255, C = 1 or 3.

        Returns:
            Activations at the cut (B, C', H', W'), channels last; the pictures themselves if nothing is frozen.

        Raises:
            ValueError: another shape or dtype.
        """
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
            raise ValueError(
                f"images must be uint8 (B, 1 or 3, H, W), found {images.dtype} {tuple(images.shape)}: pass pictures as "
                "they are stored, 0 to 255, and leave scaling to the network"
            )
        if not self.prefix_names:
            return images
        with torch.no_grad():
            x = _never_one(images)
            if self.spec.fold:
                x = self._folded_prefix(x, self.backbone, self._preprocessing())
            else:
                x = run_blocks(self.backbone, self.normalize(x), self.prefix_names)
            return x[: len(images)]

    def to_pooled(self, x: Tensor) -> Tensor:
        """Activations at the cut (B, C', H', W') → pooled features (B, 2048)."""
        if not self.head_only and (self.training or torch.is_grad_enabled()):
            x = x if self.prefix_names else self.normalize(x)
            return self.backbone.pool(self._run_tuned(self.backbone, x, self.suffix_names))
        count = len(x)
        with torch.no_grad():
            x = _never_one(x)
            if self.suffix_names and self.spec.fold:
                x = self._folded_suffix(x, self.backbone, self._preprocessing())
            else:
                x = run_blocks(self.backbone, x if self.prefix_names else self.normalize(x), self.suffix_names)
            return self.backbone.pool(x)[:count]

    def forward(self, x: Tensor, level: Level = "image") -> Tensor:
        """Compute logits.

        Args:
            x: uint8 pictures (B, C, H, W); or, by level, activations at the cut (B, C', H', W') as `to_cut` gives them,
                or pooled features (B, 2048) as `to_pooled` gives them.
            level: what x is.

        Returns:
            Logits (B, outputs).
        """
        if level == "image":
            x = self.to_cut(x)
        if level != "pooled":
            x = self.to_pooled(x)
        with record_function("block/head"):
            return self.head(x)

    def compile(self, **options: Any) -> None:
        """Compile prefix and suffix by `torch.compile`, which takes a minute or more at their first use.

        Args:
            options: of `torch.compile`.
        """
        for folded in (self._folded_prefix, self._folded_suffix):
            folded.compiler = options
            folded.forget()
        self._run_tuned = torch.compile(run_blocks, **options)

    def _preprocessing(self) -> Preprocessing:
        return Preprocessing(self.input_mean, self.input_std)


def build_network(
    config: ModelConfig, *, source: SourceWeights, outputs: int, dataset_mean: Sequence[float] | None, seed: int
) -> TransferNet:
    """Build the network of a new run on a source of weights.

    Args:
        config: the model section.
        source: backbone weights and their preprocessing.
        outputs: number of classes or labels.
        dataset_mean: mean per stored channel of the training split on 0..1, when `normalization` is dataset.
        seed: of random weights, where the source has none.
    """
    mean = source.input_mean
    if config.normalization == "dataset":
        if dataset_mean is None:
            raise ValueError("normalization: dataset needs the mean of the training split")
        red, green, blue = [float(m) for m in dataset_mean] * (3 if len(dataset_mean) == 1 else 1)
        mean = (red, green, blue)
    spec = NetworkSpec(
        outputs=outputs,
        hidden_features=config.hidden_features,
        dropout=config.dropout,
        freeze_until=config.freeze_until,
        suffix_batch_norm=config.suffix_batch_norm,
        input_mean=mean,
        input_std=source.input_std,
        fold=config.fold,
    )
    network = TransferNet(spec)
    if source.state_dict is None:
        initialize_from_scratch(network.backbone, generator=torch.Generator().manual_seed(seed))
    else:
        network.backbone.load_state_dict(source.state_dict)
    return network


def count_parameters(network: TransferNet) -> tuple[int, int]:
    """Return how many parameters are frozen and how many are trained."""
    frozen = sum(p.numel() for p in network.parameters() if not p.requires_grad)
    return frozen, sum(p.numel() for p in network.parameters() if p.requires_grad)


def _never_one(x: Tensor) -> Tensor:
    """Double a single image: for a batch of one, libraries choose other algorithms, with other roundings."""
    return torch.cat([x, x]) if len(x) == 1 else x


def _per_channel(values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float32).view(1, 3, 1, 1)


def _batch_norm_to_eval(block: nn.Module) -> None:
    for module in block.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
