"""The transfer network: uint8 pictures → frozen prefix → tuned suffix → new head → logits."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from medxfer.config import ModelConfig
from medxfer.models.head import Head
from medxfer.models.inception import InceptionBackbone, initialize_from_scratch, split_blocks
from medxfer.models.weights import SourceWeights


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

        Raises:
            ValueError: another shape or dtype.
        """
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
            raise ValueError(
                f"images must be uint8 (B, 1 or 3, H, W), found {images.dtype} {tuple(images.shape)}: pass pictures as "
                "they are stored, 0 to 255, and leave scaling to the network"
            )
        scaled = images.to(self.input_mean.dtype) / 255.0
        return ((scaled - self.input_mean) / self.input_std).contiguous(memory_format=torch.channels_last)

    def features(self, images: Tensor) -> Tensor:
        """uint8 pictures (B, C, H, W) → pooled features (B, 2048)."""
        with torch.no_grad():
            x = self.backbone.run(self.normalize(images), self.prefix_names)
        if self.head_only:
            with torch.no_grad():
                return self.backbone.pool(self.backbone.run(x, self.suffix_names))
        return self.backbone.pool(self.backbone.run(x, self.suffix_names))

    def forward(self, images: Tensor) -> Tensor:
        """uint8 pictures (B, C, H, W) → logits (B, outputs)."""
        return self.head(self.features(images))


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


def _per_channel(values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float32).view(1, 3, 1, 1)


def _batch_norm_to_eval(block: nn.Module) -> None:
    for module in block.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
