"""What every contestant is given. Nothing here knows medxfer: the peers are scripts of their own."""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
from torch import nn

Triple = tuple[float, float, float]


@dataclass(frozen=True)
class Job:
    """The same work for all.

    Attributes:
        table: CSV of path (absolute), label, split (train, val, test) and, where known, patient_id.
        weights: file of the backbone's tensors under torchvision's names, float32.
        mean: that the weights expect, per channel on 0..1.
        std: likewise.
        class_names: in the order of the outputs.
        modality: xray or dermoscopy; decides on flips and rotations.
        store: folder of medxfer's decoded pictures.
        image_size_px: side of the square pictures.
        batch_size: images per step.
        threads: of the arithmetic.
        workers: loader processes of the peers.
        cut: last frozen block, none or all.
        lr: learning rate of the head stage; a tenth of it afterwards.
        seed: of everything random.
    """

    table: str
    weights: str
    mean: Triple
    std: Triple
    class_names: tuple[str, ...]
    modality: str
    store: str
    image_size_px: int
    batch_size: int
    threads: int
    workers: int
    cut: str = "none"
    lr: float = 1e-3
    seed: int = 0

    def at(self, cut: str) -> "Job":
        """Return the same job with another cut."""
        return replace(self, cut=cut)

    def rows(self, split: str) -> tuple[list[str], list[int]]:
        """Return files and class numbers of a split, or of `all`."""
        table = pd.read_csv(self.table, dtype=str)
        table = table[(table["split"] == split) | (split == "all")]
        return table["path"].tolist(), [self.class_names.index(label) for label in table["label"]]

    def write(self, path: Path) -> Path:
        """Write the job as JSON."""
        path.write_text(json.dumps(asdict(self), indent=1), encoding="utf-8")
        return path

    @classmethod
    def read(cls, path: Path) -> "Job":
        """Read what `write` wrote."""
        values = json.loads(path.read_text(encoding="utf-8"))
        plain: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**plain)


def new_head(outputs: int) -> nn.Sequential:
    """Return the two new layers, (B, 2048) → (B, outputs), of the same shape as medxfer's."""
    return nn.Sequential(nn.Linear(2048, 512), nn.ReLU(), nn.Dropout(0.5), nn.Linear(512, outputs))


def last_frozen(cut: str) -> str:
    """Return the name of the last frozen block."""
    return "Mixed_7c" if cut == "all" else cut


def freeze(model: nn.Module, cut: str) -> None:
    """Freeze the way scripts do: `requires_grad = False` for every block up to the cut, and nothing else.

    So the frozen batch norms go on taking the statistics of each batch while training.

    Args:
        model: its children are torchvision's blocks in the order in which a picture passes them, then the head.
        cut: last frozen block, none or all.
    """
    last = last_frozen(cut)
    frozen = last != "none"
    for name, child in model.named_children():
        child.requires_grad_(not frozen)
        frozen = frozen and name != last


def trained_parameters(model: nn.Module) -> int:
    """Return how many numbers are trained."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
