"""Where batches come from: the store, what was kept, or a device's memory; and an epoch that goes on in its middle."""

import numpy as np
import pytest
import torch

from medxfer.data.augment import build_augmentation
from medxfer.data.batch_augment import build_batch_augmentation
from medxfer.data.dataset import PictureDataset
from medxfer.data.feeding import FromDevice, FromRows, FromStore, SplitLoader
from medxfer.data.resident import ResidentPictures
from medxfer.data.sampling import EpochBatches, EpochOrder

ROWS = np.array([1, 2, 4, 7, 8, 9, 12])


def make_examples(*, augmented: bool = False, views: int = 0) -> PictureDataset:
    rng = np.random.default_rng(0)
    return PictureDataset(
        pictures=rng.integers(0, 256, (13, 16, 16, 1), dtype=np.uint8),
        rows=ROWS,
        targets=rng.integers(0, 2, 13),
        augment=build_augmentation("xray", 1.0) if augmented else None,
        seed=3,
        views=views,
    )


def make_loader(source: object, *, batch_size: int = 2) -> SplitLoader:
    return SplitLoader(EpochBatches(EpochOrder(size=len(ROWS), seed=2), batch_size=batch_size), lambda: source)


def epoch(loader: SplitLoader, number: int) -> list[list[int]]:
    loader.batch_sampler.sampler.set_epoch(number)
    return [batch["row"].tolist() for batch in loader]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("given", [1, 3])
def test_an_epoch_goes_on_where_it_was_interrupted(given, workers):
    source = FromStore(make_examples(), workers=workers, pin_memory=False)
    whole = [epoch(make_loader(source), number) for number in range(3)]
    interrupted = make_loader(source)
    assert epoch(interrupted, 0) == whole[0]
    interrupted.batch_sampler.sampler.set_epoch(1)
    batches = iter(interrupted)
    for number in range(given):
        assert next(batches)["row"].tolist() == whole[1][number]
    state = interrupted.state_dict()
    assert state == {"given": given}  # what workers have prepared in advance does not count

    resumed = make_loader(FromStore(make_examples(), workers=workers, pin_memory=False))
    resumed.load_state_dict(state)
    assert epoch(resumed, 1) == whole[1][given:]
    assert epoch(resumed, 2) == whole[2]


def test_a_finished_epoch_leaves_nothing_to_skip():
    loader = make_loader(FromStore(make_examples(), workers=0, pin_memory=False))
    assert loader.state_dict() == {"given": 0}
    assert len(epoch(loader, 0)) == len(loader) == 4
    assert loader.state_dict() == {"given": 0}


def test_an_epoch_can_be_interrupted_twice():
    source = FromStore(make_examples(), workers=0, pin_memory=False)
    whole = epoch(make_loader(source), 0)
    first = make_loader(source)
    next(iter(first))
    second = make_loader(source)
    second.load_state_dict(first.state_dict())
    batches = iter(second)
    assert [next(batches)["row"].tolist() for _ in range(2)] == whole[1:3]
    third = make_loader(source)
    third.load_state_dict(second.state_dict())
    assert third.batch_sampler.skip == 3
    assert epoch(third, 0) == whole[3:]


def test_the_source_is_asked_for_in_every_epoch():
    asked, pictures = [], FromStore(make_examples(), workers=0, pin_memory=False)

    def source():
        asked.append(len(asked))
        return pictures

    loader = SplitLoader(EpochBatches(EpochOrder(size=7, seed=2), batch_size=2), source)
    epoch(loader, 0), epoch(loader, 1)
    assert asked == [0, 1]


def test_waiting_is_counted_anew_in_every_epoch(monkeypatch):
    clock = iter(range(1000))
    monkeypatch.setattr("medxfer.data.feeding.time.perf_counter", lambda: float(next(clock)))
    loader = make_loader(FromStore(make_examples(), workers=0, pin_memory=False))
    for number in range(2):
        epoch(loader, number)
        assert loader.waited_s == 5  # four batches and the end, a second each


@pytest.mark.parametrize("shape", [(3,), (4, 5, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kept_rows_come_with_the_labels_of_their_images(shape, dtype):
    examples = make_examples()
    kept = torch.randn(20, *shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    array = kept.view(torch.uint16).numpy() if dtype == torch.bfloat16 else kept.numpy()
    places = np.random.default_rng(1).permutation(20)[: len(ROWS)]
    source = FromRows("cut", array, places=places, dtype=dtype, examples=examples)
    batches = [[(0, 6), (0, 2)], [(0, 3)]]
    pictures = list(FromStore(examples, workers=0, pin_memory=False)(batches))
    for indices, found, picture in zip(batches, source(batches), pictures, strict=True):
        expected = torch.stack([kept[places[position]] for _, position in indices])
        if len(shape) == 3:
            expected = expected.permute(0, 3, 1, 2)
            assert found["cut"].is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(found["cut"], expected)
        assert torch.equal(found["target"], picture["target"])
        assert torch.equal(found["row"], picture["row"])


@pytest.mark.parametrize("augmented", [False, True])
def test_pictures_on_a_device_are_those_of_the_store(augmented):
    examples = make_examples(augmented=augmented, views=2)
    held = ResidentPictures(examples.pictures, np.arange(13), device=torch.device("cpu"))
    augment = build_batch_augmentation("xray", 1.0) if augmented else None
    source = FromDevice(held, examples=examples, augment=augment)
    batches = [[(5, 6), (5, 2)], [(5, 3)]]
    for indices, found in zip(batches, source(batches), strict=True):
        rows = ROWS[[position for _, position in indices]]
        stored = torch.from_numpy(examples.pictures[rows]).permute(0, 3, 1, 2)
        assert found["row"].tolist() == rows.tolist()
        if augment is None:
            assert torch.equal(found["image"], stored)
        else:
            seeds = np.array([examples.seed_of(index) for index in indices], dtype=np.uint32)
            assert torch.equal(found["image"], augment(stored, seeds))
            assert not torch.equal(found["image"], stored)
