"""Batches of one split; where they come from is decided anew for each epoch."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.profiler import record_function
from torch.utils.data import DataLoader

from medxfer.data.batch_augment import BatchAugmentation
from medxfer.data.dataset import PictureDataset
from medxfer.data.resident import ResidentPictures
from medxfer.data.sampling import Index

Batch = dict[str, Tensor]
"""`image` uint8 (B, C, S, S), or `cut` or `pooled`, and `target` and `row` int64 (B,)."""


Source = Callable[[Any], Iterator[Batch]]
"""Turns a batch sampler, or other lists of indices, into batches."""


class Keeper(Protocol):
    """What may stand in for the pictures of an epoch: see `medxfer.training.features`."""

    def __call__(self, epoch: int, examples: PictureDataset, pictures: Source) -> Source: ...


class SplitLoader:
    """Iterates over the batches of a split, and can go on in the middle of an epoch.

    Lightning finds the sampler that it tells the epoch through `batch_sampler.sampler`.

    `waited_s` is how long the epoch has waited for its batches so far, without what its source may compute first.

    Args:
        batches: lists of indices; one that has `skip` can be resumed.
        source: asked at the start of each epoch for what turns them into batches.
    """

    def __init__(self, batches: Any, source: Callable[[], Source]) -> None:
        self.batch_sampler = batches
        self.source = source
        self.given = 0
        self.waited_s = 0.0

    def __len__(self) -> int:
        return len(self.batch_sampler)

    def __iter__(self) -> Iterator[Batch]:
        self.given = getattr(self.batch_sampler, "skip", 0)
        self.waited_s = 0.0
        batches = self.source()(self.batch_sampler)
        while True:
            started = time.perf_counter()
            with record_function("block/data"):
                batch = next(batches, None)
            self.waited_s += time.perf_counter() - started
            if batch is None:
                return
            self.given += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Return how many batches of the epoch were given; 0 after the last."""
        return {"given": self.given % len(self)}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Make the next epoch's iteration begin behind the batches that were given."""
        self.batch_sampler.skip = state["given"]


class FromStore:
    """Pictures from the store, augmented on the CPU, in processes of their own if there are any.

    Args:
        examples: the split.
        workers: processes; 0: none.
        pin_memory: page-locked batches, for a GPU.
    """

    def __init__(self, examples: PictureDataset, *, workers: int, pin_memory: bool) -> None:
        self.examples = examples
        self.workers = workers
        self.pin_memory = pin_memory
        self._loader: DataLoader | None = None

    def __call__(self, batches: Any) -> Iterator[Batch]:
        """Yield `image`, `target` and `row`; workers stay alive for the next call with the same batches."""
        if self._loader is None or self._loader.batch_sampler is not batches:
            self._loader = DataLoader(
                self.examples,
                batch_sampler=batches,
                num_workers=self.workers,
                persistent_workers=self.workers > 0,
                pin_memory=self.pin_memory,
            )
        return iter(self._loader)


class FromRows:
    """What was computed before and kept: one row of an array per image.

    Args:
        name: what the rows hold, `cut` or `pooled`.
        array: (rows, H, W, C) or (rows, C), on disk or in memory.
        places: which of its rows belongs to each image of the split.
        dtype: that the rows' bits mean.
        examples: the split.
        pin_memory: page-locked batches, for a GPU.
    """

    def __init__(
        self,
        name: str,
        array: np.ndarray,
        *,
        places: np.ndarray,
        dtype: torch.dtype,
        examples: PictureDataset,
        pin_memory: bool = False,
    ) -> None:
        self.name = name
        self.array = array
        self.places = places
        self.dtype = dtype
        self.examples = examples
        self.pin_memory = pin_memory

    def __call__(self, batches: Iterable[Sequence[Index]]) -> Iterator[Batch]:
        """Yield the rows under their name, (B, C, H, W) channels last or (B, C), with `target` and `row`."""
        for batch in batches:
            positions = np.array([position for _, position in batch])
            values = torch.from_numpy(np.ascontiguousarray(self.array[self.places[positions]])).view(self.dtype)
            if values.ndim == 4:
                values = values.permute(0, 3, 1, 2)
            made = {self.name: values, **self.examples.labels(positions)}
            yield {name: value.pin_memory() for name, value in made.items()} if self.pin_memory else made


class FromDevice:
    """Pictures that lie in the device's memory, augmented there.

    Args:
        pictures: of the split's rows, in their order.
        examples: the split.
        augment: pictures and seeds → pictures; None: as they are.
    """

    def __init__(
        self, pictures: ResidentPictures, *, examples: PictureDataset, augment: BatchAugmentation | None
    ) -> None:
        self.pictures = pictures
        self.examples = examples
        self.augment = augment

    def __call__(self, batches: Iterable[Sequence[Index]]) -> Iterator[Batch]:
        """Yield `image` on the device, `target` and `row`."""
        for batch in batches:
            positions = np.array([position for _, position in batch])
            images = self.pictures.batch(self.examples.rows[positions])
            if self.augment is not None:
                seeds = np.array([self.examples.seed_of(index) for index in batch], dtype=np.uint32)
                images = self.augment(images, seeds)
            yield {"image": images, **self.examples.labels(positions)}
