"""Pictures in the memory of a device: the store's rows, as they are, and only where there is room."""

from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from medxfer.data import resident
from medxfer.data.decoding import Settings
from medxfer.data.phantoms import write_lesion_phantoms
from medxfer.data.reading import find_images
from medxfer.data.resident import ResidentPictures, fits, require_fit
from medxfer.data.store import build_store
from medxfer.errors import ConfigError

CPU = torch.device("cpu")


class CountingPictures:
    """A store of random pictures that counts how often each row is read."""

    def __init__(self, rows: int, *, size_px: int = 9, channels: int = 3) -> None:
        self.array = np.random.default_rng(0).integers(0, 256, (rows, size_px, size_px, channels), dtype=np.uint8)
        self.reads: list[int] = []

    def __getitem__(self, row: int, /) -> np.ndarray:
        self.reads.append(row)
        return self.array[row]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("block_bytes", [1, 5 * 9 * 9 * 3, 2**25])  # one picture at a time, a few, all at once
def test_a_batch_is_the_rows_asked_for_channels_first(channels, block_bytes, monkeypatch):
    monkeypatch.setattr(resident, "BLOCK_BYTES", block_bytes)
    pictures = CountingPictures(40, channels=channels)
    held = np.random.default_rng(1).permutation(40)[:23]
    found = ResidentPictures(pictures, held, device=CPU)
    asked = np.random.default_rng(2).choice(held, 30)  # some twice
    batch = found.batch(asked)
    assert batch.dtype == torch.uint8
    assert batch.is_contiguous()
    np.testing.assert_array_equal(batch.numpy(), pictures.array[asked].transpose(0, 3, 1, 2))
    assert len(found) == 23
    assert set(pictures.reads) == set(held)
    assert len(pictures.reads) == 23 + 1  # the first one twice, for its shape


def test_a_row_that_is_not_held_is_an_error():
    found = ResidentPictures(CountingPictures(20), np.array([3, 5, 8]), device=CPU)
    for row in (0, 4, 9):
        with pytest.raises(KeyError, match=rf"rows \[{row}\] are not held"):
            found.batch(np.array([5, row]))


def test_the_blocks_stay_small(monkeypatch):
    monkeypatch.setattr(resident, "BLOCK_BYTES", 1000)
    sizes = []
    empty = torch.empty

    def counting(*size, **options):
        sizes.append(int(np.prod(size[0])))
        return empty(*size, **options)

    monkeypatch.setattr(torch, "empty", counting)
    ResidentPictures(CountingPictures(50), np.arange(50), device=CPU)
    assert sizes == [50 * 243, 4 * 243]  # the pictures themselves, and one block of at most 1000 bytes


def test_a_store_on_disk_is_held_as_it_is(tmp_path: Path):
    files = find_images(write_lesion_phantoms(tmp_path / "lesions", images=7, size_px=64).parent / "images")
    store, _ = build_store(
        files, folder=tmp_path / "store", settings=Settings(3, 48, "pad"), on_unreadable="error", workers=1,
        progress=False,
    )  # fmt: skip
    found = ResidentPictures(store, np.arange(7), device=CPU)
    for row in range(7):
        np.testing.assert_array_equal(found.batch(np.array([row]))[0].permute(1, 2, 0).numpy(), store[row])


@pytest.fixture
def free_bytes(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Free memory of the CPU and of every GPU, as the system would give them."""
    free = {"cpu": 3_000_000, "cuda": 30_000_000}

    class Memory:
        available = property(lambda _: free["cpu"])

    monkeypatch.setattr(psutil, "virtual_memory", Memory)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free["cuda"], 10**12))
    return free


@pytest.mark.parametrize(("device", "most"), [("cpu", 100), ("cuda:0", 1000)])
def test_a_third_of_the_free_memory_may_be_taken(device, most, free_bytes):
    where = torch.device(device)
    assert fits(most, 10_000, where)
    assert not fits(most + 1, 10_000, where)
    free_bytes[where.type] //= 2
    assert not fits(most, 10_000, where)
    assert fits(most // 2, 10_000, where)


def test_what_does_not_fit_is_refused_with_the_numbers_and_a_way_out(free_bytes):
    require_fit(1000, 10_000, torch.device("cuda:0"))
    with pytest.raises(ConfigError) as caught:
        require_fit(12_345, 10_000, torch.device("cuda:0"))
    message = str(caught.value)
    for part in ("data.resident", "12,345", "cuda:0", "118 MB", "29 MB", "off", "data.image_size_px"):
        assert part in message
