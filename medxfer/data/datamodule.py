"""Batches of uint8 pictures for each split."""

import os

import numpy as np
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from medxfer.data.augment import Augmentation
from medxfer.data.dataset import PictureDataset, Pictures
from medxfer.data.sampling import EpochBatches, EpochOrder, InOrder, ResumableLoader


class PictureDataModule(LightningDataModule):
    """Feeds one store of pictures, split by split.

    Args:
        pictures: row → uint8 (S, S, C) in 0..255.
        targets: of every row, int64 (N,) or float32 (N, K).
        splits: of every row, train, val or test.
        batch_size: images per step over all devices together.
        workers: processes per device that prepare batches; 0: none.
        least_batch: a last training batch with fewer images is left out; see `EpochBatches`.
        augment: for the training split.
        seed: of order and augmentation.
        pin_memory: page-locked batches, for a GPU.
    """

    def __init__(
        self,
        *,
        pictures: Pictures,
        targets: np.ndarray,
        splits: np.ndarray,
        batch_size: int,
        workers: int = 0,
        least_batch: int = 1,
        augment: Augmentation | None = None,
        seed: int = 0,
        pin_memory: bool = False,
    ) -> None:
        super().__init__()
        self.pictures = pictures
        self.targets = targets
        self.splits = splits
        self.batch_size = batch_size
        self.workers = workers
        self.least_batch = least_batch
        self.augment = augment
        self.seed = seed
        self.pin_memory = pin_memory

    def train_dataloader(self) -> DataLoader:
        """Augmented training images in the epoch's random order."""
        dataset = self.training_examples()
        rank, processes = self._place()
        order = EpochOrder(size=len(dataset), seed=self.seed)
        batches = EpochBatches(
            order, batch_size=self.batch_size, rank=rank, processes=processes, least=self.least_batch
        )
        return ResumableLoader(
            dataset,
            batch_sampler=batches,
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
            pin_memory=self.pin_memory,
        )

    def training_examples(self) -> PictureDataset:
        """Return the training split with augmentation, item (epoch, i)."""
        return PictureDataset(
            pictures=self.pictures,
            rows=np.flatnonzero(self.splits == "train"),
            targets=self.targets,
            augment=self.augment,
            seed=self.seed,
        )

    def val_dataloader(self) -> DataLoader:
        """Validation images as they are, in order."""
        return self.loader("val")

    def loader(self, split: str) -> DataLoader:
        """Images of a split as they are, in order, each exactly once."""
        rows = np.flatnonzero(self.splits == split)
        dataset = PictureDataset(pictures=self.pictures, rows=rows, targets=self.targets)
        rank, processes = self._place()
        return DataLoader(
            dataset,
            sampler=InOrder(size=len(dataset), rank=rank, processes=processes),
            batch_size=max(1, self.batch_size // processes),
            num_workers=self.workers,
            pin_memory=self.pin_memory,
        )

    def _place(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer is not None else (0, 1)


def choose_workers(asked: int | None, *, on_gpu: bool, processes_here: int = 1) -> int:
    """Return how many processes prepare batches for one device.

    Pictures come decoded from the store, so on a CPU the network itself is the better use of every core.

    Args:
        asked: the user's number; None: choose.
        on_gpu: whether the network runs on a GPU.
        processes_here: training processes on this machine.
    """
    if asked is not None:
        return asked
    return min(8, max(1, cores() // processes_here)) if on_gpu else 0


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
