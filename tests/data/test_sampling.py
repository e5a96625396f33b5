"""The order of images: a pure function of seed and epoch, that can be taken up in the middle."""

import numpy as np
import pytest
import torch

from medxfer.data.sampling import EpochBatches, EpochOrder, InOrder

SIZES = [(1, 1), (5, 2), (10, 5), (33, 8), (64, 64), (7, 100)]


def _batches(*, size: int = 33, batch_size: int = 8, seed: int = 0, epoch: int = 0, **place: int) -> EpochBatches:
    order = EpochOrder(size=size, seed=seed)
    order.set_epoch(epoch)
    return EpochBatches(order, batch_size=batch_size, **place)


@pytest.mark.parametrize(("size", "batch_size"), SIZES)
def test_every_image_is_seen_once_in_an_epoch(size, batch_size):
    batches = list(_batches(size=size, batch_size=batch_size, epoch=3))
    assert sorted(row for batch in batches for _, row in batch) == list(range(size))
    assert {epoch for batch in batches for epoch, _ in batch} == {3}
    assert all(len(batch) == batch_size for batch in batches[:-1])
    assert len(batches) == -(-size // batch_size) == len(_batches(size=size, batch_size=batch_size))


def test_the_order_is_a_pure_function_of_seed_and_epoch():
    expected = {(seed, epoch): list(_batches(seed=seed, epoch=epoch)) for seed in range(3) for epoch in range(3)}
    shuffled = [[row for batch in order for _, row in batch] for order in expected.values()]
    assert len({tuple(rows) for rows in shuffled}) == 9
    np.random.seed(5)
    torch.manual_seed(5)
    batches = _batches(seed=1)
    for epoch in (2, 0, 1, 2):  # whatever came before
        batches.sampler.set_epoch(epoch)
        assert list(batches) == expected[1, epoch]
        assert list(batches) == expected[1, epoch]


def test_the_batch_size_does_not_change_the_order():
    whole = [row for batch in _batches(batch_size=33) for _, row in batch]
    assert [row for batch in _batches(batch_size=4) for _, row in batch] == whole


def test_the_order_is_shuffled_evenly():
    places = np.zeros((6, 6))
    for seed in range(600):
        for place, (_, row) in enumerate(next(iter(_batches(size=6, batch_size=6, seed=seed)))):
            places[row, place] += 1
    assert (np.abs(places - 100) < 45).all()  # 100 ± 9.1, so that 45 is nearly five standard deviations


@pytest.mark.parametrize("processes", [2, 3])
@pytest.mark.parametrize(("size", "batch_size"), [(33, 8), (32, 8), (35, 12), (34, 12)])
def test_processes_share_each_global_batch(size, batch_size, processes):
    settings = {"size": size, "batch_size": batch_size, "seed": 4}
    single = list(_batches(**settings))
    if len(single[-1]) < processes:
        single.pop()  # not all processes could take part
    shares = [list(_batches(rank=rank, processes=processes, **settings)) for rank in range(processes)]
    assert all(len(share) == len(single) for share in shares)
    for number, batch in enumerate(single):
        parts = [share[number] for share in shares]
        assert sorted(index for part in parts for index in part) == sorted(batch)
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
        assert min(map(len, parts)) > 0
    assert len(_batches(rank=1, processes=processes, **settings)) == len(single)


@pytest.mark.parametrize("processes", [1, 2, 5])
def test_evaluation_goes_through_the_table_once_and_in_order(processes):
    shares = [list(InOrder(size=12, rank=rank, processes=processes)) for rank in range(processes)]
    assert sorted(index for share in shares for index in share) == [(0, row) for row in range(12)]
    for rank, share in enumerate(shares):
        assert share == sorted(share)
        assert len(share) == len(InOrder(size=12, rank=rank, processes=processes))


@pytest.mark.parametrize(("least", "sizes"), [(1, [4, 4, 1]), (2, [4, 4])])
def test_a_last_batch_that_is_too_small_is_left_out(least, sizes):
    batches = EpochBatches(EpochOrder(size=9, seed=0), batch_size=4, least=least)
    assert [len(batch) for batch in batches] == sizes
    assert len(batches) == len(sizes)
