"""Batches of each split: what they hold, in which order, and what Lightning makes of them."""

import os

import lightning.pytorch as pl
import numpy as np
import pytest
import torch

from medxfer.data.augment import build_augmentation
from medxfer.data.batch_augment import build_batch_augmentation
from medxfer.data.datamodule import PictureDataModule, choose_device, choose_workers, cores
from medxfer.errors import ConfigError

SPLITS = np.array(["train"] * 11 + ["val"] * 5 + ["test"] * 4)[np.random.default_rng(0).permutation(20)]


def _pictures() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (20, 16, 16, 1), dtype=np.uint8)


def _module(**changes: object) -> PictureDataModule:
    settings = {"pictures": _pictures(), "targets": np.arange(20) % 3, "splits": SPLITS, "batch_size": 4, **changes}
    return PictureDataModule(**settings)


def _joined(batches: list[dict[str, torch.Tensor]]) -> dict[str, np.ndarray]:
    return {key: np.concatenate([batch[key].numpy() for batch in batches]) for key in batches[0]}


@pytest.mark.parametrize("split", ["train", "val", "test"])
@pytest.mark.parametrize("workers", [0, 1])
def test_a_split_comes_in_order_once_and_as_it_is(split, workers):
    module = _module(augment=build_augmentation("xray", 1.0), workers=workers)
    found = _joined(list(module.loader(split)))
    rows = np.flatnonzero(split == SPLITS)
    np.testing.assert_array_equal(found["row"], rows)
    np.testing.assert_array_equal(found["target"], rows % 3)
    np.testing.assert_array_equal(found["image"], _pictures()[rows].transpose(0, 3, 1, 2))
    assert found["image"].dtype == np.uint8


def test_validation_is_the_split_val():
    found = _joined(list(_module().val_dataloader()))
    np.testing.assert_array_equal(found["row"], np.flatnonzero(SPLITS == "val"))


def test_training_goes_once_through_the_training_split_in_random_order():
    batches = list(_module().train_dataloader())
    assert [len(batch["row"]) for batch in batches] == [4, 4, 3]
    found, rows = _joined(batches), np.flatnonzero(SPLITS == "train")
    assert sorted(found["row"]) == rows.tolist()
    assert found["row"].tolist() != rows.tolist()
    np.testing.assert_array_equal(found["image"], _pictures()[found["row"]].transpose(0, 3, 1, 2))
    np.testing.assert_array_equal(found["target"], found["row"] % 3)


def test_only_training_is_augmented():
    module = _module(augment=build_augmentation("xray", 2.0))
    found = _joined(list(module.train_dataloader()))
    unchanged = (found["image"] == _pictures()[found["row"]].transpose(0, 3, 1, 2)).all(axis=(1, 2, 3))
    assert unchanged.mean() < 0.5


@pytest.mark.parametrize("workers", [0, 2])
def test_the_same_seed_gives_the_same_batches(workers):
    settings = {"augment": build_augmentation("xray", 1.0), "seed": 7}
    first = _joined(list(_module(**settings).train_dataloader()))
    second = _joined(list(_module(**settings, workers=workers).train_dataloader()))
    assert all(np.array_equal(first[key], second[key]) for key in first)
    other = _joined(list(_module(**{**settings, "seed": 8}).train_dataloader()))
    assert not np.array_equal(first["row"], other["row"])


def test_training_examples_can_be_had_one_by_one():
    examples = _module().training_examples()
    assert len(examples) == 11
    assert [int(examples[0, i]["row"]) for i in range(11)] == np.flatnonzero(SPLITS == "train").tolist()


class _Recorder(pl.LightningModule):
    """Trains nothing and notes what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen: dict[int, list[int]] = {}
        self.images: dict[tuple[int, int], bytes] = {}

    def training_step(self, batch: dict[str, torch.Tensor], _: int) -> torch.Tensor:
        for row, image in zip(batch["row"].tolist(), batch["image"], strict=True):
            self.seen.setdefault(self.current_epoch, []).append(row)
            self.images[self.current_epoch, row] = image.numpy().tobytes()
        return self.weight.sum()

    def validation_step(self, batch: dict[str, torch.Tensor], _: int) -> None:
        assert batch["image"].dtype == torch.uint8

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
def test_lightning_gets_a_new_order_and_a_new_augmentation_every_epoch(tmp_path):
    model = _Recorder()
    trainer = pl.Trainer(
        max_epochs=3, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    module = _module(augment=build_augmentation("xray", 1.0), seed=3)
    trainer.fit(model, datamodule=module)
    rows = np.flatnonzero(SPLITS == "train").tolist()
    assert all(sorted(model.seen[epoch]) == rows for epoch in range(3))
    assert len({tuple(model.seen[epoch]) for epoch in range(3)}) == 3
    examples = module.training_examples()
    for (epoch, row), image in model.images.items():
        assert image == examples[epoch, rows.index(row)]["image"].numpy().tobytes()


def test_pictures_in_the_memory_of_a_device_are_the_same_ones():
    settings = {"device": torch.device("cpu"), "eval_batch_size": 3}
    for split in ("val", "test"):
        held, stored = (_joined(list(_module(**one).loader(split))) for one in (settings, {}))
        assert all(np.array_equal(held[key], stored[key]) for key in stored)
    batches = list(_module(**settings).loader("val"))
    assert [len(batch["row"]) for batch in batches] == [3, 2]


def test_on_a_device_only_training_is_augmented_and_by_the_same_seeds():
    augment = build_batch_augmentation("xray", 2.0)
    settings = {"augment": build_augmentation("xray", 2.0), "batch_augment": augment, "views": 2, "seed": 5}
    module = _module(**settings, device=torch.device("cpu"))
    plain = torch.from_numpy(_pictures().transpose(0, 3, 1, 2).copy())
    loader, examples = module.train_dataloader(), module.training_examples()
    places = {int(row): place for place, row in enumerate(examples.rows)}
    for epoch in range(3):
        loader.batch_sampler.sampler.set_epoch(epoch)
        for batch in loader:
            rows = batch["row"].numpy()
            seeds = np.array([examples.seed_of((epoch, places[row])) for row in rows], dtype=np.uint32)
            assert torch.equal(batch["image"], augment(plain[rows], seeds))
    found = _joined(list(module.val_dataloader()))
    np.testing.assert_array_equal(found["image"], plain.numpy()[found["row"]])


@pytest.mark.parametrize(("asked", "held"), [("auto", False), ("off", False), ("on", True)])
def test_on_a_cpu_pictures_stay_in_the_store_unless_asked_for(asked, held):
    cpu = torch.device("cpu")
    assert choose_device(asked, rows=10, row_bytes=100, device=cpu) == (cpu if held else None)


def test_pictures_that_do_not_fit_are_refused_when_asked_for():
    with pytest.raises(ConfigError, match=r"data\.resident: on keeps"):
        choose_device("on", rows=10**9, row_bytes=10**6, device=torch.device("cpu"))


@pytest.mark.parametrize("asked", [0, 3, 40])
@pytest.mark.parametrize("on_gpu", [False, True])
def test_the_number_of_workers_that_is_asked_for_is_used(asked, on_gpu):
    assert choose_workers(asked, on_gpu=on_gpu) == asked


def test_without_a_wish_a_gpu_gets_its_share_of_the_cores_and_a_cpu_none():
    assert choose_workers(None, on_gpu=False) == 0
    assert choose_workers(None, on_gpu=True) == min(8, cores())
    assert choose_workers(None, on_gpu=True, processes_here=10_000) == 1


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs Linux")
def test_only_cores_that_this_process_may_use_count():
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert cores() == 1
    finally:
        os.sched_setaffinity(0, allowed)
    assert cores() == len(allowed)
