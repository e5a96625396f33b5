"""Runs the frozen part of the network once per version of an image, and keeps what it gives.

In the head stage nothing below the head changes, so that pooled features can be kept; at the cut nothing changes in any
stage. Training on what was kept gives the same weights as training on pictures: rows have the type that the network
computes in, and are found by all that decides their values.
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from medxfer.data.dataset import PictureDataset
from medxfer.data.feeding import FromRows, Source
from medxfer.data.sampling import Index
from medxfer.data.store import MappedRows, require_space
from medxfer.errors import DataError
from medxfer.models.transfer import Level, TransferNet
from medxfer.training.callbacks.interruption import TrainingInterruptedError
from medxfer.training.stages import StagePlan

At = Literal["none", "head", "cut"]

WHAT: dict[Level, str] = {"pooled": "pooled features", "cut": "activations at the cut"}
"""What the rows of a level are called."""


class FeatureCache:
    """Stands in for the pictures of an epoch wherever what the frozen part gives has been kept, or can be.

    Args:
        net: the network, on its device by the time of the first epoch.
        plan: the stages.
        at: none: keep nothing; head: pooled features, for the head stage; cut: activations at the cut too, for both.
        folder: where rows are kept; only the user may enter it.
        digests: of each image's file, by row of the collection.
        identity: all besides the weights that decides what the network gives: plain values.
        amp: autocast's type; None: float32.
        batch_size: images per step of the pass.
        interrupted: whether the user asked to stop.
        pin_memory: page-locked batches, for a GPU.
    """

    def __init__(
        self,
        *,
        net: TransferNet,
        plan: StagePlan,
        at: At,
        folder: Path,
        digests: Sequence[str],
        identity: Mapping[str, Any],
        amp: torch.dtype | None,
        batch_size: int,
        interrupted: Callable[[], bool] = lambda: False,
        pin_memory: bool = False,
    ) -> None:
        self.net = net
        self.plan = plan
        self.at = at
        self.folder = folder
        self.digests = digests
        self.identity = identity
        self.amp = amp
        self.batch_size = batch_size
        self.interrupted = interrupted
        self.pin_memory = pin_memory
        self.seconds = 0.0
        self._stores: dict[Level, tuple[MappedRows, torch.dtype]] = {}
        self._ready: dict[tuple[Level, int, int], FromRows] = {}

    def __call__(self, epoch: int, examples: PictureDataset, pictures: Source) -> Source:
        """Return where an epoch's batches of a split come from; what is missing is computed first.

        Args:
            epoch: says the stage and the version of the images.
            examples: the split.
            pictures: of the split.

        Raises:
            DataError: what is kept cannot be written or read back.
            TrainingInterruptedError: the user asked to stop; what was computed is kept.
        """
        source = pictures
        if self.keeps(examples):
            if self.at == "cut":
                source = self._kept("cut", epoch, examples, source)
            if self.plan.stage(epoch) == "head":
                source = self._kept("pooled", epoch, examples, source)
        return source

    def keeps(self, examples: PictureDataset) -> bool:
        """Return whether anything of a split is kept: not where every epoch draws new versions."""
        return self.at != "none" and (examples.augment is None or examples.views > 0)

    def prepare(self, splits: Sequence[PictureDataset], *, head_over: bool = False) -> None:
        """Say what will be kept, where, and how much of the disk it takes.

        Args:
            splits: those that are trained on and validated with.
            head_over: the head stage lies behind a run that is resumed.

        Raises:
            DataError: the disk is too small.
        """
        epochs: dict[Level, int] = {}
        if self.at == "cut":
            epochs["cut"] = self.plan.total_epochs
        if self.at != "none" and not head_over:
            epochs["pooled"] = self.plan.head_epochs
        missing = 0
        for level, count in epochs.items():
            store, _ = self._store(level)
            keys = {key for one in splits if self.keeps(one) for key in self._keys_of_all(one, count)}
            if not keys:
                continue
            there = len(keys & store.keys())
            size = _megabytes(len(keys) * store.row_bytes)
            print(
                f"{WHAT[level]} are kept: {len(keys):,} rows of {store.row_bytes / 1000:,.0f} kB, {size} in "
                f"{store.folder}, of which {there:,} are there already"
            )
            missing += (len(keys) - there) * store.row_bytes
        if missing:
            require_space(self.folder, missing, advice="choose a smaller data.views, or --cache.at head or none")

    def _keys_of_all(self, examples: PictureDataset, epochs: int) -> Iterator[str]:
        for epoch in {examples.view(epoch): epoch for epoch in range(epochs)}.values():
            yield from self._keys(epoch, examples)

    def _keys(self, epoch: int, examples: PictureDataset) -> list[str]:
        """Return what each image of a split is found by in an epoch: its file, and the seed of its version."""
        digests = [self.digests[int(row)] for row in examples.rows]
        if examples.augment is None:
            return digests
        return [f"{digest}-{examples.seed_of((epoch, i)):08x}" for i, digest in enumerate(digests)]

    def _kept(self, level: Level, epoch: int, examples: PictureDataset, source: Source) -> FromRows:
        """Return the rows of an epoch, after computing those that are missing."""
        known = (level, len(examples) and int(examples.rows[0]), examples.view(epoch))
        if known not in self._ready:
            store, dtype = self._store(level)
            keys = self._keys(epoch, examples)
            found = store.sound(keys)
            if len(found) < len(set(keys)):
                started = time.monotonic()
                with store.adding() as adder:
                    found |= store.sound([key for key in keys if key not in found])  # by one that was waited for
                    todo = {key: i for i, key in enumerate(keys) if key not in found}
                    require_space(self.folder, len(todo) * store.row_bytes, advice="choose --cache.at head or none")
                    for key, row in self._computed(level, epoch, todo, source):
                        adder.add(key, row, {})
                found |= store.sound(list(todo))
                self.seconds += time.monotonic() - started
            if lost := sum(key not in found for key in keys):
                raise DataError(f"{lost} rows of {store.folder} do not read back as they were written: check the disk")
            places = np.array([found[key].row for key in keys], dtype=np.int64)
            self._ready[known] = FromRows(
                level,
                store.view(int(places.max()) + 1),
                places=places,
                dtype=dtype,
                examples=examples,
                pin_memory=self.pin_memory,
            )
        return self._ready[known]

    def _computed(
        self, level: Level, epoch: int, todo: Mapping[str, int], source: Source
    ) -> Iterator[tuple[str, np.ndarray]]:
        """Yield the row of each key."""
        places = list(todo.values())
        batches: list[list[Index]] = [
            [(epoch, place) for place in places[start : start + self.batch_size]]
            for start in range(0, len(places), self.batch_size)
        ]
        bar = tqdm(total=len(todo), desc=f"computing {WHAT[level]}", unit="image", leave=False, disable=None)
        keys = iter(todo)
        with bar:
            for batch in source(batches):
                if self.interrupted():
                    raise TrainingInterruptedError
                for row in self._rows_of(level, batch):
                    yield next(keys), row
                bar.update(len(batch["row"]))

    def _rows_of(self, level: Level, batch: Mapping[str, Tensor]) -> np.ndarray:
        """Run the network up to a level: (B, H, W, C) or (B, C), bits of its own type."""
        device = self.net.input_mean.device
        if level == "pooled" and not self.net.head_only:
            self.net.set_head_only(True)  # as in every step of the head stage
        amp = self.amp is not None
        with torch.inference_mode(), torch.autocast(device.type, dtype=self.amp, enabled=amp):
            x = batch["cut"].to(device) if "cut" in batch else self.net.to_cut(batch["image"].to(device))
            if level == "pooled":
                x = self.net.to_pooled(x)
        if x.ndim == 4:
            x = x.permute(0, 2, 3, 1)
        return _bits(x).numpy()

    def _store(self, level: Level) -> tuple[MappedRows, torch.dtype]:
        """Return where a level's rows lie, by all that decides their values."""
        if level not in self._stores:
            names = self.net.prefix_names if level == "cut" else (*self.net.prefix_names, *self.net.suffix_names)
            channels, size = self.identity["channels"], self.identity["image_size_px"]
            sample = self._rows_of(level, {"image": torch.zeros(1, channels, size, size, dtype=torch.uint8)})
            dtype = self.amp or torch.float32
            spec = self.net.spec
            decides = {
                **self.identity,
                "level": level,
                "weights": _digest(self.net, names),
                "freeze_until": spec.freeze_until,
                "input_mean": spec.input_mean,
                "input_std": spec.input_std,
                "fold": spec.fold,
                "dtype": str(dtype),
                "torch": torch.__version__,
            }
            name = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:16]
            rows = MappedRows(self.folder / name, shape=sample.shape[1:], dtype=str(sample.dtype))
            self._stores[level] = (rows, dtype)
        return self._stores[level]


def _bits(x: Tensor) -> Tensor:
    x = x.contiguous().cpu()
    return x.view(torch.uint16) if x.dtype == torch.bfloat16 else x  # NumPy has no bfloat16


def _digest(net: TransferNet, names: Sequence[str]) -> str:
    """Return a SHA-256 over all tensors of some blocks."""
    digest = hashlib.sha256()
    for name, block in zip(names, net.backbone.blocks(names), strict=True):
        for key, tensor in sorted(block.state_dict().items()):
            if not key.endswith("num_batches_tracked"):
                digest.update(f"{name}.{key}".encode())
                digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _megabytes(size: int) -> str:
    return f"{size / 2**30:.1f} GB" if size >= 2**30 else f"{size / 2**20:.0f} MB"
