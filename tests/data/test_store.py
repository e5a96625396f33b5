"""Decoded pictures on disk: equal to decoding directly, built once, never half written, private."""

import hashlib
import json
import os
import pickle
import resource
import signal
import stat
import time
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medxfer.data import store as store_module
from medxfer.data.fitting import content_box, fit_image
from medxfer.data.reading import read_image
from medxfer.data.store import PixelStore, Settings, build_store, decode_file
from medxfer.errors import DataError

SIZE = 32


def _files(folder: Path, count: int = 6, seed: int = 0) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    files = [folder / f"{i:02d}.png" for i in range(count)]
    for file in files:
        Image.fromarray(rng.integers(1, 256, (*rng.integers(20, 60, size=2), 3), dtype=np.uint8)).save(file)
    return files


def _build(files: list[Path], folder: Path, **changes: object) -> tuple[PixelStore, list[tuple[int, str]]]:
    settings = {"channels": 1, "size_px": SIZE, "fit": "pad", "on_unreadable": "error", "num_workers": 0, **changes}
    return build_store(files, folder=folder, progress=False, **settings)


def _content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def _ages(folder: Path) -> dict[str, tuple[int, int]]:
    return {path.name: (path.stat().st_mtime_ns, path.stat().st_ino) for path in folder.iterdir()}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("fit", ["pad", "crop", "stretch"])
def test_a_row_is_its_file_decoded_and_fitted(tmp_path, channels, fit):
    files = _files(tmp_path / "images")
    store, unreadable = _build(files, tmp_path / "store", channels=channels, fit=fit)
    assert unreadable == []
    assert len(store) == len(files)
    for row, file in enumerate(files):
        picture = read_image(file, channels=channels)
        np.testing.assert_array_equal(store[row], fit_image(picture, size_px=SIZE, fit=fit))
        rows, columns = content_box(*picture.shape[:2], size_px=SIZE, fit=fit)
        assert store.boxes[row].tolist() == [rows.start, rows.stop, columns.start, columns.stop]
    assert store.file_digests() == [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]


def test_pictures_cannot_be_written_to(tmp_path):
    store, _ = _build(_files(tmp_path / "images"), tmp_path / "store")
    with pytest.raises(ValueError, match="read-only"):
        store[0][0, 0] = 1


def test_a_second_build_finds_the_first_and_touches_nothing(tmp_path):
    files = _files(tmp_path / "images")
    first, _ = _build(files, tmp_path / "store")
    ages = _ages(tmp_path / "store")
    second, _ = _build(files, tmp_path / "store")
    assert (second.array, second.index) == (first.array, first.index)
    assert _ages(tmp_path / "store") == ages
    assert set(ages) == {first.array.name, first.index.name}


def test_files_elsewhere_with_the_same_content_share_a_store(tmp_path):
    first, _ = _build(_files(tmp_path / "here"), tmp_path / "store")
    second, _ = _build(_files(tmp_path / "there"), tmp_path / "store")
    assert first.array == second.array


def test_a_changed_file_is_noticed_even_with_its_old_size_and_date(tmp_path):
    files = _files(tmp_path / "images")
    Image.new("L", (40, 40), 10).save(files[2], format="BMP")
    first, _ = _build(files, tmp_path / "store")
    before = files[2].stat()
    Image.new("L", (40, 40), 200).save(files[2], format="BMP")
    os.utime(files[2], ns=(before.st_atime_ns, before.st_mtime_ns))
    assert files[2].stat().st_size == before.st_size
    second, _ = _build(files, tmp_path / "store")
    assert second.array != first.array
    assert (first[2] == 10).all()
    assert (second[2] == 200).all()
    assert first.content_digest() != second.content_digest()
    np.testing.assert_array_equal(first[3], second[3])


@pytest.mark.parametrize("change", [{"channels": 3}, {"size_px": 31}, {"fit": "crop"}, {"fit": "stretch"}])
def test_another_setting_makes_another_store(tmp_path, change):
    files = _files(tmp_path / "images")
    first, _ = _build(files, tmp_path / "store")
    second, _ = _build(files, tmp_path / "store", **change)
    assert first.array != second.array
    assert len(_content(tmp_path / "store")) == 4


def test_the_order_of_the_files_is_the_order_of_the_rows(tmp_path):
    files = _files(tmp_path / "images")
    first, _ = _build(files, tmp_path / "store")
    second, _ = _build(files[::-1], tmp_path / "store")
    np.testing.assert_array_equal(np.stack([first[i] for i in range(6)]), np.stack([second[5 - i] for i in range(6)]))
    assert first.content_digest() != second.content_digest()


def test_parallel_and_serial_builds_are_equal_byte_for_byte(tmp_path):
    files = _files(tmp_path / "images", count=50)  # enough that it is worth while to start processes
    files[7].write_bytes(b"no image")
    _build(files, tmp_path / "serial", on_unreadable="skip")
    store, unreadable = _build(files, tmp_path / "parallel", on_unreadable="skip", num_workers=2)
    assert [row for row, _ in unreadable] == [7]
    assert len(store) == 49
    assert _content(tmp_path / "serial") == _content(tmp_path / "parallel")


@pytest.mark.parametrize("mask", [0o000, 0o022])
def test_only_the_user_may_enter_the_folder(tmp_path, mask):
    previous = os.umask(mask)
    try:
        store, _ = _build(_files(tmp_path / "images"), tmp_path / "deep" / "store")
    finally:
        os.umask(previous)
    assert stat.S_IMODE((tmp_path / "deep" / "store").stat().st_mode) == 0o700
    assert stat.S_IMODE(store.array.stat().st_mode) == stat.S_IMODE(store.index.stat().st_mode) == 0o600


def test_a_folder_that_was_open_to_others_is_closed(tmp_path):
    (tmp_path / "store").mkdir(mode=0o777)
    (tmp_path / "store").chmod(0o777)
    _build(_files(tmp_path / "images"), tmp_path / "store")
    assert stat.S_IMODE((tmp_path / "store").stat().st_mode) == 0o700


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "store").write_text("a file is in the way")
    with pytest.raises(DataError, match=r"the folder of decoded images .*store cannot be made: File exists"):
        _build(_files(tmp_path / "images"), tmp_path / "store")


def _spoil(files: list[Path]) -> None:
    files[1].write_bytes(b"")
    files[3].write_text("not an image")
    files[4].unlink()


def test_all_unreadable_files_are_told_in_one_error(tmp_path):
    files = _files(tmp_path / "images")
    _spoil(files)
    with pytest.raises(DataError) as caught:
        _build(files, tmp_path / "store")
    text = str(caught.value)
    assert text.startswith("3 of 6 images cannot be read:")
    assert f"{files[1]}: is empty" in text
    assert f"{files[3]}: is not a PNG" in text
    assert f"{files[4]}: No such file or directory" in text
    assert "--data.on_unreadable skip" in text
    assert "00.png" not in text


def test_more_than_20_unreadable_files_are_all_listed(tmp_path):
    files = _files(tmp_path / "images", count=30)
    for file in files[2:]:
        file.write_bytes(b"")
    with pytest.raises(DataError) as caught:
        _build(files, tmp_path / "store")
    assert all(f"{file}: is empty" in str(caught.value) for file in files[2:])


def test_unreadable_files_are_left_out_when_asked(tmp_path):
    files = _files(tmp_path / "images")
    _spoil(files)
    store, unreadable = _build(files, tmp_path / "store", on_unreadable="skip")
    assert [row for row, _ in unreadable] == [1, 3, 4]
    assert all(reason.startswith(f"{files[row]}: ") for row, reason in unreadable)
    assert len(store) == len(store.boxes) == len(store.file_digests()) == 3
    for row, file in enumerate((files[0], files[2], files[5])):
        expected = fit_image(read_image(file, channels=1), size_px=SIZE, fit="pad")
        np.testing.assert_array_equal(store[row], expected)
    again, found = _build(files, tmp_path / "store", on_unreadable="skip")
    assert (again.array, found) == (store.array, unreadable)
    with pytest.raises(DataError, match="3 of 6"):  # also when the store is there already
        _build(files, tmp_path / "store")


def test_nothing_readable_is_an_error_even_when_unreadable_files_may_be_left_out(tmp_path):
    files = _files(tmp_path / "images", count=2)
    for file in files:
        file.write_bytes(b"")
    with pytest.raises(DataError, match="2 of 2 images cannot be read"):
        _build(files, tmp_path / "store", on_unreadable="skip")


def test_a_repaired_file_is_read_again(tmp_path):
    files = _files(tmp_path / "images")
    good = files[1].read_bytes()
    files[1].unlink()
    assert len(_build(files, tmp_path / "store", on_unreadable="skip")[0]) == 5
    files[1].write_bytes(good)
    assert len(_build(files, tmp_path / "store")[0]) == 6


@pytest.mark.parametrize("part", ["array", "index"])
@pytest.mark.parametrize("damage", ["missing", "empty", "half"])
def test_a_damaged_store_is_built_again(tmp_path, part, damage):
    files = _files(tmp_path / "images")
    store, _ = _build(files, tmp_path / "store")
    path: Path = getattr(store, part)
    whole = _content(tmp_path / "store")
    del store
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[: 0 if damage == "empty" else path.stat().st_size // 2])
    _build(files, tmp_path / "store")
    assert _content(tmp_path / "store") == whole


def test_a_build_that_is_broken_off_leaves_nothing(tmp_path, monkeypatch):
    def fail(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("medxfer.data.store.fit_image", fail)
    with pytest.raises(KeyboardInterrupt):
        _build(_files(tmp_path / "images"), tmp_path / "store")
    assert _content(tmp_path / "store") == {}


def test_leftovers_of_killed_builds_go_after_a_day(tmp_path):
    (tmp_path / "store").mkdir()
    old, new = tmp_path / "store" / ".writing-old.npy", tmp_path / "store" / ".writing-new.npy"
    for path in (old, new):
        path.write_bytes(b"x")
    os.utime(old, (time.time() - 25 * 3600,) * 2)
    _build(_files(tmp_path / "images"), tmp_path / "store")
    assert not old.exists()
    assert new.exists()


def test_too_small_a_disk_is_refused_before_anything_is_decoded(tmp_path):
    with pytest.raises(DataError, match=r"the decoded images need .* MB in .* MB are free: make room"):
        _build(_files(tmp_path / "images"), tmp_path / "store", size_px=10**7)
    assert _content(tmp_path / "store") == {}


def test_a_store_travels_to_workers_as_two_paths(tmp_path):
    store, _ = _build(_files(tmp_path / "images", count=20), tmp_path / "store")
    sent = pickle.dumps(store)
    assert len(sent) < 1000
    found = pickle.loads(sent)
    assert len(found) == 20
    np.testing.assert_array_equal(found[7], store[7])
    np.testing.assert_array_equal(found.boxes, store.boxes)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("fit", ["pad", "crop"])
def test_the_mean_is_that_of_all_pixels_that_are_not_padding(tmp_path, channels, fit):
    store, _ = _build(_files(tmp_path / "images"), tmp_path / "store", channels=channels, fit=fit)
    rows = np.array([0, 2, 5])  # the pictures hold no 0, so that what is 0 is padding
    pixels = np.concatenate([store[row].reshape(-1, channels) for row in rows])
    expected = pixels[(pixels > 0).any(axis=1)].mean(axis=0) / 255
    np.testing.assert_allclose(store.mean(rows), expected, rtol=1e-12)
    assert store.mean(rows).shape == (channels,)


def test_the_index_names_no_readable_file(tmp_path):
    files = _files(tmp_path / "Canary Patient")
    store, _ = _build(files, tmp_path / "store")
    assert "Canary" not in store.index.read_text()
    assert json.loads(store.index.read_text())["size_px"] == SIZE


def test_one_file_that_cannot_be_read_gives_a_reason_and_no_exception(tmp_path):
    (tmp_path / "a.png").write_bytes(b"")
    found = decode_file(tmp_path / "a.png", Settings(1, SIZE, "pad"))
    assert found.image is None
    assert found.reason == "is empty"
    assert decode_file(tmp_path / "no.png", Settings(1, SIZE, "pad")).digest == "unreadable"


def test_a_file_that_ends_its_decoder_is_named_and_the_others_are_read(tmp_path, monkeypatch):
    """Stands for a decoder that aborts: the pool's processes end, and each file is then read on its own."""
    files = _files(tmp_path / "images", count=40)
    bad = files[17]
    original = store_module._pool
    monkeypatch.setattr(store_module, "_pool", lambda workers: _Breaking(original, bad))
    store, unreadable = _build(files, tmp_path / "store", on_unreadable="skip", num_workers=2)
    assert [row for row, _ in unreadable] == [17]
    assert "its decoder ended the process" in unreadable[0][1]
    monkeypatch.setattr(store_module, "decode_file", lambda *_: pytest.fail("read in this process"))
    assert _build(files, tmp_path / "store", on_unreadable="skip", num_workers=2)[1] == unreadable  # found, not built
    monkeypatch.undo()
    whole, _ = _build([file for file in files if file != bad], tmp_path / "others")
    assert all(np.array_equal(store[row], whole[row]) for row in range(39))


class _Breaking:
    """A pool without processes that breaks as soon as it gets one file."""

    def __init__(self, original: object, bad: Path) -> None:
        self.bad = bad
        self.broken = False

    def __enter__(self) -> "_Breaking":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def submit(self, function: Callable[..., object], files: object, settings: Settings) -> Future:
        future: Future = Future()
        if self.broken or files == self.bad or (isinstance(files, list) and self.bad in files):
            self.broken = True
            future.set_exception(BrokenProcessPool())
        else:
            future.set_result(function(files, settings))
        return future


def test_a_file_that_can_be_read_again_is_read_again(tmp_path, monkeypatch):
    files = _files(tmp_path / "images")
    original = store_module.read_image

    def failing(path: Path, **options: object) -> np.ndarray:
        if path == files[2]:
            raise DataError(f"{path}: Input/output error")
        return original(path, **options)

    monkeypatch.setattr(store_module, "read_image", failing)
    _, unreadable = _build(files, tmp_path / "store", on_unreadable="skip")
    assert [row for row, _ in unreadable] == [2]
    monkeypatch.undo()
    store, unreadable = _build(files, tmp_path / "store")
    assert (len(store), unreadable) == (6, [])


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path, monkeypatch):
    """A limit on the size of files stands for the disk: it fails while pictures are written."""
    files = _files(tmp_path / "images", count=30)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20 * SIZE * SIZE, hard))
    try:
        with pytest.raises(DataError, match=f"cannot be written to {tmp_path / 'store'}: File too large"):
            _build(files, tmp_path / "store")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert list((tmp_path / "store").iterdir()) == []


def test_advice_to_skip_is_for_those_who_do_not(tmp_path):
    (tmp_path / "a.png").write_bytes(b"")
    for choice, advised in (("error", True), ("skip", False)):
        with pytest.raises(DataError) as caught:
            _build([tmp_path / "a.png"], tmp_path / "store", on_unreadable=choice)
        assert ("on_unreadable skip" in str(caught.value)) == advised
