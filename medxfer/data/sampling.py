"""The order in which images are seen: a pure function of the seed and the epoch."""

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

Index = tuple[int, int]
"""(epoch, row): the data set draws its augmentation from both."""


class EpochOrder(Sampler[int]):
    """A seeded random order of one epoch.

    Args:
        size: number of images.
        seed: of the order.
    """

    def __init__(self, *, size: int, seed: int) -> None:
        self.size = size
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch; Lightning calls this, through a batch sampler's attribute `sampler`."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[int]:
        return iter(np.random.default_rng((self.seed, self.epoch)).permutation(self.size).tolist())


class EpochBatches(Sampler[list[Index]]):
    """Batches of one epoch in its random order.

    Each global batch is dealt to the processes in turn: process r of n takes its images r, r + n, … A last batch with
    fewer than `least` images for each process is left out, since every process must take part in every step.

    Args:
        order: of the images.
        batch_size: images per global batch.
        rank: this process.
        processes: number of processes.
        least: images that a process needs in a batch; 2 where batch norm takes its statistics from them.

    Example:
        >>> batches = EpochBatches(EpochOrder(size=5, seed=0), batch_size=2)
        >>> sorted(row for batch in batches for _, row in batch)
        [0, 1, 2, 3, 4]
    """

    def __init__(
        self, order: EpochOrder, *, batch_size: int, rank: int = 0, processes: int = 1, least: int = 1
    ) -> None:
        self.sampler = order
        self.batch_size = batch_size
        self.rank = rank
        self.processes = processes
        self.least = least
        self.skip = 0

    def __len__(self) -> int:
        whole, rest = divmod(len(self.sampler), self.batch_size)
        return whole + (rest >= self.least * self.processes)

    def __iter__(self) -> Iterator[list[Index]]:
        epoch, order = self.sampler.epoch, list(self.sampler)
        skip, self.skip = self.skip, 0
        for number in range(skip, len(self)):
            batch = order[number * self.batch_size : (number + 1) * self.batch_size]
            yield [(epoch, row) for row in batch[self.rank :: self.processes]]


class InOrder(Sampler[Index]):
    """Rows in the order of the table, each exactly once over all processes.

    Args:
        size: number of images.
        rank: this process.
        processes: number of processes.
    """

    def __init__(self, *, size: int, rank: int = 0, processes: int = 1) -> None:
        self.rows = range(rank, size, processes)

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Index]:
        return ((0, row) for row in self.rows)
