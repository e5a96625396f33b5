"""Training examples: a sample is a pure function of seed, epoch and image."""

import itertools

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from medxfer.data.augment import build_augmentation
from medxfer.data.dataset import PictureDataset, augmentation_seed
from medxfer.data.sampling import EpochBatches, EpochOrder


def _pictures(channels: int = 1, count: int = 12) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 24, 24, channels), dtype=np.uint8)


def _dataset(*, rows: list[int] | None = None, modality: str | None = "xray", seed: int = 0) -> PictureDataset:
    pictures = _pictures(3 if modality == "dermoscopy" else 1)
    return PictureDataset(
        pictures=pictures, rows=np.arange(12) if rows is None else np.array(rows), targets=np.arange(12) % 3,
        augment=build_augmentation(modality, 1.0) if modality else None, seed=seed,
    )  # fmt: skip


@pytest.mark.parametrize("channels", [1, 3])
def test_an_example_is_picture_target_and_row(channels):
    pictures, targets = _pictures(channels), np.arange(12) * 10
    found = PictureDataset(pictures=pictures, rows=np.array([3, 7, 11]), targets=targets)
    assert len(found) == 3
    for position, row in enumerate((3, 7, 11)):
        example = found[0, position]
        assert set(example) == {"image", "target", "row"}
        assert example["image"].dtype == torch.uint8
        np.testing.assert_array_equal(example["image"].numpy(), pictures[row].transpose(2, 0, 1))
        assert example["image"].is_contiguous()
        assert (example["target"].dtype, example["target"].item()) == (torch.int64, targets[row])
        assert (example["row"].dtype, example["row"].item()) == (torch.int64, row)


def test_targets_of_several_labels_keep_their_unknowns():
    targets = np.array([[1, 0], [np.nan, 1]] * 6, dtype=np.float32)
    found = PictureDataset(pictures=_pictures(), rows=np.arange(12), targets=targets)
    assert found[0, 1]["target"].dtype == torch.float32
    np.testing.assert_array_equal(found[0, 1]["target"].numpy(), targets[1])


def test_an_example_may_be_changed_without_changing_the_store():
    pictures = _pictures()
    pictures.flags.writeable = False  # as the memory map is
    found = PictureDataset(pictures=pictures, rows=np.arange(12), targets=np.zeros(12, dtype=np.int64))
    found[0, 0]["image"].zero_()
    assert found[0, 0]["image"].any()


@pytest.mark.parametrize("modality", ["xray", "dermoscopy"])
def test_a_sample_is_a_pure_function_of_seed_epoch_and_image(modality):
    first, second = _dataset(modality=modality, seed=5), _dataset(modality=modality, seed=5)
    places = list(itertools.product(range(3), range(12)))
    expected = {place: first[place]["image"] for place in places}
    np.random.seed(1)
    torch.manual_seed(1)
    for place in reversed(places):  # in another order, by another object
        assert torch.equal(second[place]["image"], expected[place])


def test_seed_epoch_and_image_each_change_the_augmentation():
    pictures = np.repeat(_pictures(count=1), 2, axis=0)  # the same picture twice
    targets = np.zeros(2, dtype=np.int64)

    def sample(seed: int, epoch: int, row: int) -> bytes:
        augment = build_augmentation("xray", 1.0)
        dataset = PictureDataset(pictures=pictures, rows=np.arange(2), targets=targets, augment=augment, seed=seed)
        return dataset[epoch, row]["image"].numpy().tobytes()

    found = {sample(seed, epoch, row) for seed, epoch, row in itertools.product(range(3), range(3), range(2))}
    assert len(found) >= 17  # an X-ray stays as it is in 2 of 100 cases


def test_the_augmentation_belongs_to_the_image_and_not_to_its_place_in_the_split():
    whole, part = _dataset(), _dataset(rows=[2, 9])
    assert torch.equal(part[4, 1]["image"], whole[4, 9]["image"])


def test_augmentation_seeds_are_below_2_to_the_32_and_do_not_collide():
    seeds = [augmentation_seed(*place) for place in itertools.product(range(5), range(20), range(100))]
    assert all(0 <= seed < 2**32 for seed in seeds)
    assert len(set(seeds)) >= len(seeds) - 3  # by chance: 10,000² / 2³³ = 0.01 pairs
    assert augmentation_seed(1, 2, 3) == np.random.SeedSequence((1, 2, 3)).generate_state(1)[0]


def test_workers_give_what_the_process_itself_gives():
    def epochs(workers: int) -> list[dict[str, torch.Tensor]]:
        order = EpochOrder(size=12, seed=3)
        loader = DataLoader(_dataset(), batch_sampler=EpochBatches(order, batch_size=5), num_workers=workers)
        found = []
        for epoch in range(2):
            order.set_epoch(epoch)
            found.extend(loader)
        return found

    for one, other in zip(epochs(0), epochs(2), strict=True):
        assert set(one) == set(other)
        assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("views", [1, 3])
def test_versions_are_drawn_in_turn(views):
    pictures = _pictures()
    examples = PictureDataset(
        pictures=pictures, rows=np.arange(12), targets=np.arange(12), augment=build_augmentation("xray", 1.0),
        seed=4, views=views,
    )  # fmt: skip
    endless = PictureDataset(
        pictures=pictures, rows=np.arange(12), targets=np.arange(12), augment=build_augmentation("xray", 1.0), seed=4
    )
    for epoch in range(7):
        assert examples.view(epoch) == epoch % views
        assert endless.view(epoch) == epoch
        assert torch.equal(examples[epoch, 5]["image"], endless[epoch % views, 5]["image"])


def test_pictures_that_are_not_augmented_have_one_version():
    assert {_dataset(modality=None).view(epoch) for epoch in range(5)} == {0}
