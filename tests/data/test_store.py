"""Rows on disk survive killed processes, full disks and flipped bits; and the pictures that are decoded into them."""

import functools
import hashlib
import json
import os
import pickle
import resource
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medxfer.data import decoding
from medxfer.data import store as store_module
from medxfer.data.decoding import Decoded, Settings, decode_file
from medxfer.data.dicom_files import write_dicom
from medxfer.data.fitting import content_box, fit_image
from medxfer.data.isolation import isolated
from medxfer.data.reading import read_image
from medxfer.data.store import LINES_AT_ONCE, MappedRows, PixelStore, build_store
from medxfer.errors import DataError

SIZE = 32


# Rows of any kind


def _row(key: str, shape: tuple[int, ...] = (4, 4), dtype: str = "uint8") -> np.ndarray:
    """Return the row that belongs to a key."""
    numbers = np.random.default_rng(list(key.encode())).integers(0, 256, shape)
    return numbers.astype(dtype)


def _keys(count: int) -> list[str]:
    return [f"key {number}" for number in range(count)]


def _rows(folder: Path, count: int = 0) -> MappedRows:
    rows = MappedRows(folder, shape=(4, 4))
    if count:
        _add(rows, _keys(count))
    return rows


def _add(rows: MappedRows, keys: list[str]) -> None:
    with rows.adding() as adder:
        for key in keys:
            adder.add(key, _row(key, rows.shape, str(rows.dtype)), {"of": key})


def _complete(rows: MappedRows, keys: list[str]) -> int:
    """Add what is missing, as a build does, check every row, and return how many were missing."""
    found = rows.sound(keys)
    _assert_right(rows, found)
    missing = [key for key in keys if key not in found]
    _add(rows, missing)
    found = rows.sound(keys)
    assert sorted(found) == sorted(keys)
    _assert_right(rows, found)
    return len(missing)


def _assert_right(rows: MappedRows, found: dict[str, store_module.Entry]) -> None:
    view = rows.view(max((entry.row for entry in found.values()), default=-1) + 1)
    for key, entry in found.items():
        np.testing.assert_array_equal(view[entry.row], _row(key, rows.shape, str(rows.dtype)))
        assert entry.note == {"of": key}


def _stored(rows: MappedRows) -> float:
    """Return how many rows the file holds."""
    return rows.array.stat().st_size / rows.row_bytes


@pytest.mark.parametrize("dtype", ["uint8", "float16", "float32", "int64"])
@pytest.mark.parametrize("shape", [(5,), (4, 4, 3)])
def test_rows_of_any_type_and_shape_are_found_by_their_keys(tmp_path, shape, dtype):
    rows = MappedRows(tmp_path / "rows", shape=shape, dtype=dtype)
    _add(rows, ["a/b", "ü", "", "key 3"])
    again = MappedRows(tmp_path / "rows", shape=shape, dtype=dtype)
    found = again.sound(["ü", "nothing", "key 3", "ü", ""])
    assert {key: entry.row for key, entry in found.items()} == {"ü": 1, "": 2, "key 3": 3}
    _assert_right(again, found)
    assert again.view(4).dtype == dtype
    assert again.view(4).shape == (4, *shape)
    assert again.view(0).shape == (0, *shape)


def test_a_row_of_another_size_is_refused_before_it_moves_the_others(tmp_path):
    rows = _rows(tmp_path / "rows", 3)
    with pytest.raises(ValueError, match="rows of 16 bytes are needed, found 128"), rows.adding() as adder:
        adder.add("other", _row("other").astype(float), {})
    assert _complete(rows, _keys(5)) == 2


def test_a_row_stored_by_memory_order_is_found_as_it_was(tmp_path):
    rows = MappedRows(tmp_path / "rows", shape=(3, 5))
    with rows.adding() as adder:
        adder.add("turned", np.arange(15, dtype=np.uint8).reshape(5, 3).T, {})
    np.testing.assert_array_equal(rows.view(1)[0], np.arange(15).reshape(5, 3).T)


def test_the_later_of_two_rows_with_one_key_counts(tmp_path):
    rows = _rows(tmp_path / "rows", 2)
    with rows.adding() as adder:
        adder.add("key 0", np.full((4, 4), 7, dtype=np.uint8), {"of": "later"})
    entry = rows.sound(["key 0"])["key 0"]
    assert (rows.view(entry.row + 1)[entry.row] == 7).all()
    assert entry.note == {"of": "later"}


def test_rows_go_to_another_process(tmp_path):
    rows = pickle.loads(pickle.dumps(_rows(tmp_path / "rows", 4)))
    assert _complete(rows, _keys(6)) == 2


def test_a_view_stays_while_others_add(tmp_path):
    rows = _rows(tmp_path / "rows", 3)
    view = rows.view(3)
    before = view.copy()
    _add(_rows(tmp_path / "rows"), _keys(400)[3:])
    np.testing.assert_array_equal(view, before)
    with pytest.raises(ValueError, match="read-only"):
        view[0, 0] = 1


def test_an_exception_while_rows_are_added_keeps_those_before_it(tmp_path):
    rows = _rows(tmp_path / "rows")
    with pytest.raises(KeyboardInterrupt), rows.adding() as adder:  # noqa: PT012
        for key in _keys(7):
            adder.add(key, _row(key), {"of": key})
        raise KeyboardInterrupt
    assert _complete(rows, _keys(10)) == 3


@pytest.mark.parametrize("kept", [0, 1, 16 * 5, 16 * 5 + 3, 16 * 10 - 1])
def test_rows_that_were_cut_off_are_added_again(tmp_path, kept):
    rows = _rows(tmp_path / "rows", 10)
    os.truncate(rows.array, kept)
    assert _complete(rows, _keys(12)) == 12 - kept // 16
    assert _complete(rows, _keys(12)) == 0
    assert _stored(rows) == 12


@pytest.mark.parametrize("name", ["rows.bin", "index.jsonl"])
def test_a_file_that_is_gone_is_written_again(tmp_path, name):
    rows = _rows(tmp_path / "rows", 10)
    (rows.folder / name).unlink()
    assert _complete(rows, _keys(10)) == 10
    assert _stored(rows) == 10


@pytest.mark.parametrize("leftover", [b"x" * 100, b"x"])
def test_what_a_killed_process_left_behind_the_last_row_is_dropped(tmp_path, leftover):
    rows = _rows(tmp_path / "rows", 10)
    with rows.array.open("ab") as file:
        file.write(leftover)
    assert _complete(rows, _keys(12)) == 2
    assert _stored(rows) == 12


@pytest.mark.parametrize("part", [1, 20, -1])
def test_half_a_last_line_is_dropped_and_its_row_added_again(tmp_path, part):
    rows = _rows(tmp_path / "rows", 10)
    lines = rows.index.read_bytes().splitlines(keepends=True)
    rows.index.write_bytes(b"".join(lines[:-1]) + lines[-1][:part])
    assert _complete(rows, _keys(12)) == 3
    assert len(rows.index.read_bytes().splitlines()) == 12


def test_a_flipped_bit_of_a_row_costs_that_row_alone(tmp_path):
    rows = _rows(tmp_path / "rows", 10)
    content = bytearray(rows.array.read_bytes())
    content[16 * 4 + 7] ^= 1
    rows.array.write_bytes(content)
    assert _complete(rows, _keys(10)) == 1
    assert _stored(rows) == 11


@pytest.mark.parametrize("bit", [0x01, 0x08, 0x80])
def test_a_flipped_bit_of_the_index_costs_one_row_or_two(tmp_path, bit):
    """Whatever it hits; two, if a line's end is lost or two lines name one row."""
    for place in range(0, 4 * 60, 5):
        rows = _rows(tmp_path / f"rows {place}", 5)
        content = bytearray(rows.index.read_bytes())
        content[place] ^= bit
        rows.index.write_bytes(content)
        assert _complete(rows, _keys(6)) <= 3, place
        assert _complete(rows, _keys(6)) == 0, place


@pytest.mark.parametrize("row", [-1, 0, 4, 7, 10**12, 2.5, None, "1", [1]])
def test_a_line_that_names_a_wrong_row_costs_no_other(tmp_path, row):
    rows = _rows(tmp_path / "rows", 5)
    lines = [json.loads(line) for line in rows.index.read_text().splitlines()]
    lines[2]["row"] = row
    rows.index.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    assert _complete(rows, _keys(6)) == 2
    assert _complete(rows, _keys(6)) == 0


@pytest.mark.parametrize("line", ["", "null", "[]", "{}", '{"key": 1}', '{"key": [], "row": 0, "note": {}}', "\x00"])
def test_lines_that_say_nothing_are_passed_over(tmp_path, line):
    rows = _rows(tmp_path / "rows", 3)
    with rows.index.open("a") as file:
        file.write(f"{line}\n")
    assert _complete(rows, _keys(5)) == 2


ADD = """
import sys, time
from pathlib import Path
from tests.data.test_store import MappedRows, _keys, _row
rows = MappedRows(Path(sys.argv[1]), shape=(4, 4))
with rows.adding() as adder:
    for key in _keys(int(sys.argv[2])):
        adder.add(key, _row(key), {"of": key})
    print("added", flush=True)
    time.sleep(1000)
"""


def test_a_killed_process_loses_at_most_what_it_had_not_flushed(tmp_path):
    count = 2 * LINES_AT_ONCE + 50
    with _started(ADD, tmp_path / "rows", count) as process:
        assert _first_line(process) == "added\n"
        process.kill()
    rows = _rows(tmp_path / "rows")
    assert set(rows.sound(_keys(count))) == set(_keys(2 * LINES_AT_ONCE))
    assert _complete(rows, _keys(count)) == 50
    assert _stored(rows) == count


@contextmanager
def _started(program: str, *arguments: object) -> Iterator["subprocess.Popen[str]"]:
    process = subprocess.Popen(
        [sys.executable, "-c", program, *map(str, arguments)], cwd=Path(__file__).parents[2],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    with process:
        try:
            yield process
        finally:
            process.kill()


def _first_line(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline()


@contextmanager
def _largest_file(size: int) -> Iterator[None]:
    """A limit on the size of files stands for a full disk: it fails while something is written."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)


def test_a_full_disk_keeps_whole_rows_and_no_more(tmp_path):
    rows = MappedRows(tmp_path / "rows", shape=(100, 100))
    with _largest_file(95_000), pytest.raises(DataError, match=f"{rows.folder} cannot be written: File too large"):
        _add(rows, _keys(20))
    assert set(rows.sound(_keys(20))) == set(_keys(9))
    assert _stored(rows) == 9
    assert _complete(rows, _keys(20)) == 11
    assert _stored(rows) == 20


def test_what_cannot_be_written_is_told(tmp_path):
    rows = _rows(tmp_path / "rows")
    rows.index.mkdir()
    with pytest.raises(DataError, match=f"{rows.folder} cannot be written: Is a directory"):
        _add(rows, _keys(2))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written_to_is_told(tmp_path):
    rows = _rows(tmp_path / "rows", 2)
    rows.folder.chmod(0o500)
    with pytest.raises(DataError, match="Permission denied"):
        _add(rows, _keys(3)[2:])


# Pictures


def _files(folder: Path, count: int = 6, seed: int = 0) -> list[Path]:
    """Write pictures without black pixels, so that what is black in a fitted one is padding."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    files = [folder / f"{i:02d}.png" for i in range(count)]
    for file in files:
        Image.fromarray(rng.integers(1, 256, (*rng.integers(20, 60, size=2), 3), dtype=np.uint8)).save(file)
    return files


def _build(files: list[Path], folder: Path, **changes: object) -> tuple[PixelStore, list[tuple[int, str]]]:
    choices = {"channels": 1, "size_px": SIZE, "fit": "pad", "on_unreadable": "error", "workers": 1, **changes}
    on_unreadable, workers = str(choices.pop("on_unreadable")), int(str(choices.pop("workers")))
    settings = Settings(**choices)  # type: ignore[arg-type]
    return build_store(
        files, folder=folder, settings=settings, on_unreadable=on_unreadable, workers=workers, progress=False
    )


def _fitted(file: Path, channels: int = 1, fit: str = "pad") -> np.ndarray:
    return fit_image(read_image(file, channels=channels), size_px=SIZE, fit=fit)


def _assert_pictures(store: PixelStore, files: list[Path]) -> None:
    assert len(store) == len(files)
    for row, file in enumerate(files):
        np.testing.assert_array_equal(store[row], _fitted(file))


def _decoded(folder: Path) -> int:
    """Return how many pictures were ever decoded into a folder's only store."""
    (array,) = folder.glob("*/rows.bin")
    return array.stat().st_size // SIZE**2


def _lines(folder: Path) -> list[dict[str, object]]:
    (index,) = folder.glob("*/index.jsonl")
    return [json.loads(line) for line in index.read_text().splitlines()]


def _ages(folder: Path) -> dict[str, tuple[int, int]]:
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"]
    return {path.name: (path.stat().st_mtime_ns, path.stat().st_ino) for path in files}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("fit", ["pad", "crop", "stretch"])
def test_a_row_is_its_file_decoded_and_fitted(tmp_path, channels, fit):
    files = _files(tmp_path / "images")
    store, unreadable = _build(files, tmp_path / "store", channels=channels, fit=fit)
    assert unreadable == []
    assert len(store) == len(files)
    for row, file in enumerate(files):
        height, width = read_image(file, channels=channels).shape[:2]
        np.testing.assert_array_equal(store[row], _fitted(file, channels, fit))
        rows, columns = content_box(height, width, size_px=SIZE, fit=fit)
        assert store.boxes[row].tolist() == [rows.start, rows.stop, columns.start, columns.stop]
        np.testing.assert_array_equal(store.content(row), store[row][rows, columns])
        facts = store.facts[row]
        assert (facts.width, facts.height, facts.format, facts.mode) == (width, height, "PNG", "RGB")
        assert facts.box == tuple(store.boxes[row])
    assert store.file_digests() == [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
    assert store.pixel_digests() == [facts.pixels for facts in store.facts]
    assert len(set(store.pixel_digests())) == len(files)


def test_pictures_cannot_be_written_to(tmp_path):
    store, _ = _build(_files(tmp_path / "images"), tmp_path / "store")
    with pytest.raises(ValueError, match="read-only"):
        store[0][0, 0] = 1


def test_a_second_build_finds_the_first_and_touches_nothing(tmp_path):
    files = _files(tmp_path / "images")
    first, _ = _build(files, tmp_path / "store")
    ages = _ages(tmp_path / "store")
    second, _ = _build(files, tmp_path / "store")
    assert set(ages) == {"rows.bin", "index.jsonl"}
    assert _ages(tmp_path / "store") == ages
    assert second.facts == first.facts
    assert second.content_digest() == first.content_digest()
    _assert_pictures(second, files)


def test_one_changed_file_of_50_is_decoded_alone(tmp_path):
    files = _files(tmp_path / "images", count=50)
    first, _ = _build(files, tmp_path / "store")
    assert _decoded(tmp_path / "store") == 50
    before = first[21].copy()
    Image.new("L", (40, 30), 99).save(files[21])
    second, _ = _build(files, tmp_path / "store")
    assert _decoded(tmp_path / "store") == 51
    _assert_pictures(second, files)
    np.testing.assert_array_equal(first[21], before)
    assert first.content_digest() != second.content_digest()


def test_collections_share_what_they_have_in_common(tmp_path):
    files = _files(tmp_path / "here", count=8)
    _build(files[:5], tmp_path / "store")
    elsewhere = tmp_path / "elsewhere.png"
    elsewhere.write_bytes(files[0].read_bytes())
    chosen = [files[7], elsewhere, files[2]]
    store, _ = _build(chosen, tmp_path / "store")
    assert _decoded(tmp_path / "store") == 6
    _assert_pictures(store, chosen)


def test_one_content_in_many_files_is_decoded_once_and_has_a_row_for_each(tmp_path):
    files = _files(tmp_path / "images", count=3)
    copies = [tmp_path / f"copy {i}.png" for i in range(10)]
    for copy in copies:
        copy.write_bytes(files[1].read_bytes())
    chosen = [*copies[:5], *files, *copies[5:], files[0]]
    store, _ = _build(chosen, tmp_path / "store")
    assert _decoded(tmp_path / "store") == 3
    _assert_pictures(store, chosen)


def test_a_changed_file_is_noticed_even_with_its_old_size_and_date(tmp_path):
    files = _files(tmp_path / "images")
    Image.new("L", (40, 40), 10).save(files[2], format="BMP")
    first, _ = _build(files, tmp_path / "store")
    before = files[2].stat()
    Image.new("L", (40, 40), 200).save(files[2], format="BMP")
    os.utime(files[2], ns=(before.st_atime_ns, before.st_mtime_ns))
    assert files[2].stat().st_size == before.st_size
    second, _ = _build(files, tmp_path / "store")
    assert (first[2] == 10).all()
    assert (second[2] == 200).all()
    np.testing.assert_array_equal(first[3], second[3])


@pytest.mark.parametrize(
    "change",
    [{"channels": 3}, {"size_px": 31}, {"fit": "crop"}, {"fit": "stretch"}, {"max_pixels": 10**4}, {"frame": "first"}],
    ids=str,
)
def test_another_setting_makes_another_store(tmp_path, change):
    files = _files(tmp_path / "images", count=2)
    first, _ = _build(files, tmp_path / "store")
    second, _ = _build(files, tmp_path / "store", **change)
    assert first.settings_name() != second.settings_name()
    assert {path.name for path in (tmp_path / "store").iterdir()} == {first.settings_name(), second.settings_name()}


def test_the_order_of_the_files_is_the_order_of_the_rows(tmp_path):
    files = _files(tmp_path / "images")
    first, _ = _build(files, tmp_path / "store")
    second, _ = _build(files[::-1], tmp_path / "store")
    _assert_pictures(second, files[::-1])
    assert first.content_digest() != second.content_digest()


def test_any_number_of_processes_gives_the_same_files_byte_for_byte(tmp_path):
    files = _files(tmp_path / "images", count=40)
    files[7].write_bytes(b"no image")
    for workers in (1, 2):
        store, unreadable = _build(files, tmp_path / str(workers), on_unreadable="skip", workers=workers)
        assert [row for row, _ in unreadable] == [7]
        assert len(store) == 39
    for name in ("rows.bin", "index.jsonl"):
        (one,), (two,) = ((tmp_path / str(workers)).glob(f"*/{name}") for workers in (1, 2))
        assert one.read_bytes() == two.read_bytes()


@pytest.mark.parametrize("mask", [0o000, 0o022])
def test_only_the_user_may_enter_the_folders_and_read_the_files(tmp_path, mask):
    (tmp_path / "store").mkdir(mode=0o777)
    (tmp_path / "store").chmod(0o777)  # was open to others
    previous = os.umask(mask)
    try:
        for folder in (tmp_path / "store", tmp_path / "deep" / "store"):
            _build(_files(tmp_path / "images"), folder)
    finally:
        os.umask(previous)
    for folder in (tmp_path / "store", tmp_path / "deep" / "store"):
        found = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.rglob("*")}
        assert {found.pop(name) for name in ("rows.bin", "index.jsonl", ".lock")} == {0o600}
        assert [*found.values(), stat.S_IMODE(folder.stat().st_mode)] == [0o700, 0o700]


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "store").write_text("a file is in the way")
    with pytest.raises(DataError, match=r"the folder of decoded images .*store cannot be made: File exists"):
        _build(_files(tmp_path / "images"), tmp_path / "store")


def _spoil(files: list[Path]) -> None:
    files[1].write_bytes(b"")
    files[3].write_text("not an image")
    files[4].unlink()


def test_all_unreadable_files_are_told_in_one_error(tmp_path):
    files = _files(tmp_path / "images", count=30)
    _spoil(files)
    for file in files[6:]:
        file.write_bytes(b"")
    with pytest.raises(DataError) as caught:
        _build(files, tmp_path / "store")
    text = str(caught.value)
    assert text.startswith("27 of 30 images cannot be read:")
    assert f"{files[3]}: is not a PNG" in text
    assert f"{files[4]}: No such file or directory" in text
    assert all(f"{file}: is empty" in text for file in (files[1], *files[6:]))
    assert "--data.on_unreadable skip" in text
    assert not any(name in text for name in ("00.png", "02.png", "05.png"))


def test_unreadable_files_are_left_out_when_asked(tmp_path):
    files = _files(tmp_path / "images")
    _spoil(files)
    for _ in range(2):
        store, unreadable = _build(files, tmp_path / "store", on_unreadable="skip")
        assert [row for row, _ in unreadable] == [1, 3, 4]
        assert all(reason.startswith(f"{files[row]}: ") for row, reason in unreadable)
        assert len(store.boxes) == len(store.file_digests()) == len(store.facts) == 3
        _assert_pictures(store, [files[0], files[2], files[5]])
    with pytest.raises(DataError, match="3 of 6"):  # also when the others are there already
        _build(files, tmp_path / "store")


def test_nothing_readable_is_an_error_even_when_unreadable_files_may_be_left_out(tmp_path):
    files = _files(tmp_path / "images", count=2)
    for file in files:
        file.write_bytes(b"")
    for choice, advised in (("error", True), ("skip", False)):
        with pytest.raises(DataError, match="2 of 2 images cannot be read") as caught:
            _build(files, tmp_path / "store", on_unreadable=choice)
        assert ("on_unreadable skip" in str(caught.value)) == advised


def test_nothing_at_all_is_an_empty_store(tmp_path):
    store, unreadable = _build([], tmp_path / "store")
    assert (len(store), unreadable) == (0, [])


def test_a_repaired_file_is_read_again(tmp_path):
    files = _files(tmp_path / "images")
    good = files[1].read_bytes()
    files[1].write_bytes(good[:100])
    assert len(_build(files, tmp_path / "store", on_unreadable="skip")[0]) == 5
    files[1].write_bytes(good)
    _assert_pictures(_build(files, tmp_path / "store")[0], files)
    assert _decoded(tmp_path / "store") == 6


def _failing(file: Path, settings: Settings, name: str) -> Decoded:
    """Stand for a disk that fails once."""
    if file.name == name:
        return Decoded("", reason="Input/output error")
    return decode_file(file, settings)


def test_a_file_that_can_be_read_again_is_read_again(tmp_path, monkeypatch):
    files = _files(tmp_path / "images")
    monkeypatch.setattr(decoding, "decode_file", functools.partial(_failing, name=files[2].name))
    _, unreadable = _build(files, tmp_path / "store", on_unreadable="skip")
    assert unreadable == [(2, f"{files[2]}: Input/output error")]
    monkeypatch.undo()
    _assert_pictures(_build(files, tmp_path / "store")[0], files)


def _ending(file: Path, settings: Settings, name: str) -> Decoded:
    """Stand for a decoder that aborts."""
    if file.name == name:
        os.abort()
    return decode_file(file, settings)


def test_a_file_that_ends_its_decoder_is_named_and_the_others_are_read(tmp_path, monkeypatch):
    files = _files(tmp_path / "images", count=12)
    monkeypatch.setattr(decoding, "decode_file", functools.partial(_ending, name=files[7].name))
    store, unreadable = _build(files, tmp_path / "store", on_unreadable="skip")
    assert [row for row, _ in unreadable] == [7]
    assert unreadable[0][1].startswith(f"{files[7]}: is damaged: its decoder crashed")
    _assert_pictures(store, files[:7] + files[8:])


@pytest.mark.parametrize("becomes", ["another picture", "no picture"])
def test_a_file_that_is_replaced_before_it_is_decoded_is_told(tmp_path, monkeypatch, becomes):
    files = _files(tmp_path / "images")
    other = _files(tmp_path / "other", count=1, seed=1)[0].read_bytes()
    original = store_module.decode_files

    def replacing(*arguments: object, **options: object) -> object:
        files[2].write_bytes(other if becomes == "another picture" else b"no picture")
        return original(*arguments, **options)

    monkeypatch.setattr(store_module, "decode_files", replacing)
    _, unreadable = _build(files, tmp_path / "store", on_unreadable="skip")
    reason = "changed while it was read" if becomes == "another picture" else "is not a PNG"
    assert [row for row, _ in unreadable] == [2]
    assert unreadable[0][1].startswith(f"{files[2]}: {reason}")
    monkeypatch.undo()
    if becomes == "another picture":
        _assert_pictures(_build(files, tmp_path / "store")[0], files)


def test_too_small_a_disk_is_refused_before_anything_is_decoded(tmp_path, monkeypatch):
    monkeypatch.setattr(store_module, "decode_files", lambda *_, **__: pytest.fail("decoded"))
    with pytest.raises(DataError, match=r"MB are needed in .* MB are free: make room"):
        _build(_files(tmp_path / "images"), tmp_path / "store", size_px=10**7)
    assert not list((tmp_path / "store").rglob("rows.bin"))


def test_a_full_disk_is_told_and_the_store_works_again_with_room(tmp_path):
    files = _files(tmp_path / "images", count=30)
    store, _ = _build(files[:4], tmp_path / "store")
    with (
        _largest_file(20 * SIZE * SIZE),
        pytest.raises(DataError, match=rf"{tmp_path / 'store'}/\w+ cannot be written: File too large"),
    ):
        _build(files, tmp_path / "store")
    assert _decoded(tmp_path / "store") == len(_lines(tmp_path / "store")) == 4
    _assert_pictures(store, files[:4])
    _assert_pictures(_build(files, tmp_path / "store")[0], files)
    assert _decoded(tmp_path / "store") == 30


def test_an_interrupted_build_keeps_what_it_had(tmp_path, monkeypatch):
    files = _files(tmp_path / "images", count=30)
    original = store_module.decode_files

    def interrupted(*arguments: object, **options: object) -> Iterator[object]:
        for number, decoded in enumerate(original(*arguments, **options)):
            if number == 20:
                raise KeyboardInterrupt
            yield decoded

    monkeypatch.setattr(store_module, "decode_files", interrupted)
    with pytest.raises(KeyboardInterrupt):
        _build(files, tmp_path / "store")
    monkeypatch.undo()
    assert _decoded(tmp_path / "store") == 20
    _assert_pictures(_build(files, tmp_path / "store")[0], files)
    assert _decoded(tmp_path / "store") == 30


BUILD = """
import sys
from pathlib import Path
from tests.data.test_store import _assert_pictures, _build
files = sorted(Path(sys.argv[1]).iterdir())[int(sys.argv[3]):int(sys.argv[4])]
print("starts", flush=True)
sys.stdin.readline()
store, unreadable = _build(files, Path(sys.argv[2]))
_assert_pictures(store, files)
print(len(store), unreadable, flush=True)
"""


def test_a_build_that_is_killed_is_finished_by_the_next(tmp_path):
    files = _files(tmp_path / "images", count=2 * LINES_AT_ONCE)
    with _started(BUILD, tmp_path / "images", tmp_path / "store", 0, len(files)) as process:
        assert _first_line(process) == "starts\n"
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
        while not any(array.stat().st_size for array in (tmp_path / "store").glob("*/rows.bin")):
            assert process.poll() is None
            time.sleep(0.001)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    _assert_pictures(_build(files, tmp_path / "store")[0], files)
    assert _decoded(tmp_path / "store") == len(_lines(tmp_path / "store")) == len(files)


def test_processes_that_build_at_once_share_the_work(tmp_path):
    files = _files(tmp_path / "images", count=60)
    ranges = [(0, 40), (20, 60), (0, 40)]
    with ExitStack() as stack:
        processes = [
            stack.enter_context(_started(BUILD, tmp_path / "images", tmp_path / "store", *ends)) for ends in ranges
        ]
        assert {_first_line(process) for process in processes} == {"starts\n"}
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        outputs = [process.communicate()[0].splitlines()[-1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert outputs == ["40 []"] * 3
    lines = _lines(tmp_path / "store")
    assert _decoded(tmp_path / "store") == len({line["key"] for line in lines}) == len(lines) == 60
    _assert_pictures(_build(files, tmp_path / "store")[0], files)


def test_a_damaged_picture_is_decoded_alone(tmp_path):
    files = _files(tmp_path / "images")
    _build(files, tmp_path / "store")
    (array,) = (tmp_path / "store").glob("*/rows.bin")
    content = bytearray(array.read_bytes())
    content[3 * SIZE**2 + 5] ^= 4
    array.write_bytes(content)
    _assert_pictures(_build(files, tmp_path / "store")[0], files)
    assert _decoded(tmp_path / "store") == 7


def test_a_store_goes_to_other_processes_without_its_pictures(tmp_path):
    files = _files(tmp_path / "images", count=20)
    store, _ = _build(files, tmp_path / "store")
    assert len(pickle.dumps(store)) < 20 * 500 < 20 * SIZE**2
    found = pickle.loads(pickle.dumps(store))
    _assert_pictures(found, files)
    np.testing.assert_array_equal(found.boxes, store.boxes)
    assert found.facts == store.facts
    elsewhere = isolated(functools.partial(_picture, store), [3, 7], lost=lambda row: np.zeros(0), workers=1)
    for row, picture in zip((3, 7), elsewhere, strict=True):
        np.testing.assert_array_equal(picture, store[row])


def _picture(store: PixelStore, row: int) -> np.ndarray:
    return np.array(store[row])


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("fit", ["pad", "crop"])
def test_the_mean_is_that_of_all_pixels_that_are_not_padding(tmp_path, channels, fit):
    store, _ = _build(_files(tmp_path / "images"), tmp_path / "store", channels=channels, fit=fit)
    rows = np.array([0, 2, 5])
    pixels = np.concatenate([store[row].reshape(-1, channels) for row in rows])
    expected = pixels[(pixels > 0).any(axis=1)].mean(axis=0) / 255
    np.testing.assert_allclose(store.mean(rows), expected, rtol=1e-12)
    assert store.mean(rows).shape == (channels,)


def test_nothing_in_the_store_names_a_file_or_a_patient(tmp_path):
    files = _files(tmp_path / "CANARY")
    write_dicom(tmp_path / "CANARY" / "a.dcm", np.full((20, 20), 3, dtype=np.uint16), patient_id="CANARY")
    files[1].write_bytes(b"unreadable")
    files[2].unlink()
    files.append(tmp_path / "CANARY" / "a.dcm")
    _build(files, tmp_path / "store", on_unreadable="skip")
    assert len(_lines(tmp_path / "store")) == 5
    for path in (tmp_path / "store").rglob("*"):
        assert "CANARY" not in str(path.relative_to(tmp_path))
        assert path.is_dir() or b"CANARY" not in path.read_bytes()
