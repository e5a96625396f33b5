"""How many pictures are passed through the network at once."""

import psutil
import pytest
import torch

from medxfer.training.inference import LARGEST, inference_batch

CPU = torch.device("cpu")


@pytest.fixture
def memory(monkeypatch):
    def available(megabytes: float) -> None:
        monkeypatch.setattr(psutil, "virtual_memory", lambda: type("", (), {"available": megabytes * 2**20})())

    return available


def test_with_plenty_of_memory_it_is_the_largest_that_pays(memory):
    memory(2**20)
    assert inference_batch(299, bytes_per_value=4, device=CPU) == LARGEST["cpu"]


def test_it_is_a_power_of_two_that_fits_in_a_quarter(memory):
    for megabytes in (100, 300, 700, 1000, 2500):
        memory(megabytes)
        batch = inference_batch(299, bytes_per_value=4, device=CPU)
        assert batch & (batch - 1) == 0
        assert batch == 1 or batch * 96 * 299**2 * 4 <= megabytes * 2**20 / 4


def test_larger_pictures_and_wider_numbers_make_it_smaller(memory):
    memory(2500)
    batch = inference_batch(299, bytes_per_value=4, device=CPU)
    assert inference_batch(598, bytes_per_value=4, device=CPU) == batch // 4
    assert inference_batch(299, bytes_per_value=2, device=CPU) == batch * 2


def test_it_is_at_least_one(memory):
    memory(1)
    assert inference_batch(2048, bytes_per_value=4, device=CPU) == 1
