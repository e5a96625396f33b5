"""Batches for each split: augmented and in random order for training, as they are and in order for the others."""

from collections.abc import Callable
from typing import Any

import loky
import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import BatchSampler

from medxfer.data.augment import Augmentation
from medxfer.data.batch_augment import BatchAugmentation
from medxfer.data.dataset import PictureDataset, Pictures
from medxfer.data.feeding import FromDevice, FromStore, Keeper, Source, SplitLoader
from medxfer.data.resident import ResidentPictures, fits, require_fit
from medxfer.data.sampling import EpochBatches, EpochOrder, InOrder


class PictureDataModule(LightningDataModule):
    """Feeds one store of pictures, split by split.

    Args:
        pictures: row → uint8 (S, S, C) in 0..255.
        targets: of every row, int64 (N,) or float32 (N, K).
        splits: of every row, train, val or test.
        batch_size: images per step over all devices together.
        eval_batch_size: images per step of validation and test on each device; None: as in training.
        workers: processes per device that prepare batches; 0: none.
        least_batch: a last training batch with fewer images is left out; see `EpochBatches`.
        augment: for the training split.
        views: versions of each training image; see `PictureDataset`.
        seed: of order and augmentation.
        pin_memory: page-locked batches, for a GPU.
        device: keep the pictures in its memory and augment there; None: on the CPU.
        batch_augment: does on the device what `augment` does on the CPU.
    """

    def __init__(
        self,
        *,
        pictures: Pictures,
        targets: np.ndarray,
        splits: np.ndarray,
        batch_size: int,
        eval_batch_size: int | None = None,
        workers: int = 0,
        least_batch: int = 1,
        augment: Augmentation | None = None,
        views: int = 0,
        seed: int = 0,
        pin_memory: bool = False,
        device: torch.device | None = None,
        batch_augment: BatchAugmentation | None = None,
    ) -> None:
        super().__init__()
        self.pictures = pictures
        self.targets = targets
        self.splits = splits
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.workers = workers
        self.least_batch = least_batch
        self.augment = augment
        self.views = views
        self.seed = seed
        self.pin_memory = pin_memory
        self.device = device
        self.batch_augment = batch_augment
        self.keeper: Keeper | None = None
        self._resident: ResidentPictures | None = None

    def train_dataloader(self) -> SplitLoader:
        """Training images, augmented, in the epoch's random order; or what was kept of them."""
        examples = self.training_examples()
        rank, processes = self._place()
        order = EpochOrder(size=len(examples), seed=self.seed)
        batches = EpochBatches(
            order, batch_size=self.batch_size, rank=rank, processes=processes, least=self.least_batch
        )
        return SplitLoader(batches, self._kept(examples, lambda: order.epoch))

    def training_examples(self) -> PictureDataset:
        """Return the training split with augmentation, item (epoch, i)."""
        return PictureDataset(
            pictures=self.pictures,
            rows=np.flatnonzero(self.splits == "train"),
            targets=self.targets,
            augment=self.augment,
            seed=self.seed,
            views=self.views,
        )

    def val_dataloader(self) -> SplitLoader:
        """Validation images as they are, in order; or what was kept of them."""
        examples = self.examples("val")
        return SplitLoader(self._in_order(examples), self._kept(examples, self._epoch))

    def loader(self, split: str) -> SplitLoader:
        """Images of a split as they are, in order, each exactly once."""
        examples = self.examples(split)
        source = self._pictures_of(examples)
        return SplitLoader(self._in_order(examples), lambda: source)

    def examples(self, split: str) -> PictureDataset:
        """Return a split as it is, item (0, i)."""
        return PictureDataset(pictures=self.pictures, rows=np.flatnonzero(self.splits == split), targets=self.targets)

    def _in_order(self, examples: PictureDataset) -> BatchSampler:
        rank, processes = self._place()
        size = self.eval_batch_size or max(1, self.batch_size // processes)
        order: Any = InOrder(size=len(examples), rank=rank, processes=processes)
        return BatchSampler(order, size, drop_last=False)

    def _kept(self, examples: PictureDataset, epoch: Callable[[], int]) -> Callable[[], Source]:
        pictures = self._pictures_of(examples)
        return lambda: pictures if self.keeper is None else self.keeper(epoch(), examples, pictures)

    def _pictures_of(self, examples: PictureDataset) -> Source:
        if self.device is None:
            return FromStore(examples, workers=self.workers, pin_memory=self.pin_memory)
        if self._resident is None:
            self._resident = ResidentPictures(self.pictures, np.arange(len(self.splits)), device=self.device)
        augment = self.batch_augment if examples.augment is not None else None
        return FromDevice(self._resident, examples=examples, augment=augment)

    def _epoch(self) -> int:
        return self.trainer.current_epoch if self.trainer is not None else 0

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


def choose_device(asked: str, *, rows: int, row_bytes: int, device: torch.device) -> torch.device | None:
    """Return the device whose memory holds the pictures; None: they stay in the store on disk.

    Args:
        asked: on, off, or auto: on a GPU where they fit. A CPU reads the store as fast as memory.
        rows: number of pictures.
        row_bytes: bytes of one.
        device: where the network runs.

    Raises:
        ConfigError: on is asked for, and they do not fit.
    """
    if asked == "on":
        require_fit(rows, row_bytes, device)
        return device
    return device if asked == "auto" and device.type == "cuda" and fits(rows, row_bytes, device) else None


def cores() -> int:
    """Return how many cores this process may use, by its affinity and its container's limit."""
    return loky.cpu_count()
