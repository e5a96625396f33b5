"""What a network said of each image of a split, and what is true."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd


@dataclass(frozen=True)
class Predictions:
    """Row i of each part is the same image.

    Attributes:
        paths: as the table writes them.
        split: train, val or test per row.
        targets: int64 (N,) class index, or float (N, C) of 1, 0 and NaN (unknown) in multilabel.
        probs: float (N, C): softmax in binary (the last class is the positive one) and multiclass, else sigmoid.
        groups: patient per row, (N,), or None.
        class_names: of the columns of `probs`.
        task: binary, multiclass or multilabel.
    """

    paths: Sequence[str]
    split: Sequence[str]
    targets: np.ndarray
    probs: np.ndarray
    groups: np.ndarray | None
    class_names: tuple[str, ...]
    task: str

    def __len__(self) -> int:
        return len(self.paths)

    def to_table(self) -> pd.DataFrame:
        """Return path, split, target (one column per label in multilabel) and one probability per class."""
        columns: dict[str, Sequence[object]] = {"path": self.paths, "split": self.split}
        if self.task == "multilabel":
            for k, name in enumerate(self.class_names):
                columns[f"target_{name}"] = ["" if np.isnan(t) else int(t) for t in self.targets[:, k]]
        else:
            columns["target"] = [self.class_names[int(target)] for target in self.targets]
        for k, name in enumerate(self.class_names):
            columns[f"prob_{name}"] = [f"{p:.6f}" for p in self.probs[:, k]]
        return pd.DataFrame(columns)


def write_predictions(path: Path, predictions: Sequence[Predictions]) -> None:
    """Write several splits to one CSV, which appears at once."""
    temporary = path.with_name(f".{path.name}.writing")
    pd.concat([one.to_table() for one in predictions], ignore_index=True).to_csv(temporary, index=False)
    os.replace(temporary, path)
