"""Rows of the store as training examples."""

from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from medxfer.data.augment import Augmentation
from medxfer.data.sampling import Index


class Pictures(Protocol):
    """What a data set needs of a store: row → uint8 (S, S, C) in 0..255."""

    def __getitem__(self, row: int, /) -> np.ndarray: ...


class PictureDataset(Dataset[dict[str, Tensor]]):
    """Pictures with their targets, augmented by a pure function of (seed, epoch, row).

    Item `(epoch, i)`: `image` uint8 (C, S, S) in 0..255, `target` int64 () or float32 (K,), `row` int64 ().

    Args:
        pictures: the store.
        rows: which of its rows, in order.
        targets: of all rows of the store, (N,) or (N, K).
        augment: picture and seed → picture; None: pictures as they are.
        seed: of the augmentation.
        views: versions of each image: epoch e draws version e mod `views`; 0: a new one in every epoch.
    """

    def __init__(
        self,
        *,
        pictures: Pictures,
        rows: np.ndarray,
        targets: np.ndarray,
        augment: Augmentation | None = None,
        seed: int = 0,
        views: int = 0,
    ) -> None:
        self.pictures = pictures
        self.rows = rows
        self.views = views
        self.targets = torch.from_numpy(np.ascontiguousarray(targets))
        self.augment = augment
        self.seed = seed

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Index) -> dict[str, Tensor]:
        row = int(self.rows[index[1]])
        image = np.array(self.pictures[row])
        if self.augment is not None:
            image = self.augment(image, self.seed_of(index))
        return {
            "image": torch.from_numpy(image.transpose(2, 0, 1).copy()),
            "target": self.targets[row],
            "row": torch.tensor(row),
        }

    def labels(self, positions: np.ndarray) -> dict[str, Tensor]:
        """Return `target` and `row` of some images of the split."""
        rows = torch.from_numpy(self.rows[positions])
        return {"target": self.targets[rows], "row": rows}

    def view(self, epoch: int) -> int:
        """Return which version of its images an epoch draws."""
        if self.augment is None:
            return 0
        return epoch % self.views if self.views else epoch

    def seed_of(self, index: Index) -> int:
        """Return the seed of an image's augmentation in an epoch, below 2³²."""
        epoch, position = index
        return augmentation_seed(self.seed, self.view(epoch), int(self.rows[position]))


def augmentation_seed(seed: int, view: int, row: int) -> int:
    """Return the seed of one version of one image, below 2³²."""
    return int(np.random.SeedSequence((seed, view, row)).generate_state(1)[0])
