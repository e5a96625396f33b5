"""Rows kept on disk: a memory-mapped array that all processes share, and the pictures decoded into it once."""

import hashlib
import json
import os
import shutil
import sys
import zlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from filelock import FileLock, Timeout
from tqdm import tqdm

from medxfer.data.decoding import NO_DIGEST, Facts, Settings, decode_files, file_digest
from medxfer.errors import DataError, listed

VERSION = 3
"""Counts changes of decoding or fitting that change pixels; older stores are then not used."""

LINES_AT_ONCE = 200
"""Rows that are written before their lines are."""

FILES_AT_ONCE = 512
"""Files that wait to be hashed, whatever their number."""

CHECKED_AT_ONCE = 2**26
"""Bytes that are verified in one step."""


class MappedRows:
    """Rows of one shape and type on disk, each found by a key; rows are only ever added.

    Any number of processes may read while one adds; a second one that wants to add waits. A process that is killed
    leaves at most rows that nothing refers to, which the next one overwrites.

    Args:
        folder: holds nothing else; only the user may enter it.
        shape: of a row.
        dtype: of a row.
    """

    def __init__(self, folder: Path, *, shape: tuple[int, ...], dtype: str = "uint8") -> None:
        self.folder = folder
        self.shape = shape
        self.dtype = np.dtype(dtype)
        self.row_bytes = int(np.prod(shape)) * self.dtype.itemsize
        self.array = folder / "rows.bin"
        self.index = folder / "index.jsonl"
        _make_private(folder)

    def sound(self, keys: Sequence[str]) -> dict[str, "Entry"]:
        """Return key → entry of those keys whose rows are there and have not changed since they were written."""
        wanted = set(keys)
        entries = {entry.key: entry for entry in self._entries() if entry.key in wanted}
        found = sorted(entries.values(), key=lambda entry: entry.row)
        per_step = max(1, CHECKED_AT_ONCE // self.row_bytes)
        steps = [found[start : start + per_step] for start in range(0, len(found), per_step)]
        with ThreadPoolExecutor() as pool:  # checksums let other threads run
            return {entry.key: entry for step in pool.map(self._checked, steps) for entry in step}

    def keys(self) -> set[str]:
        """Return what rows are found by, sound or not."""
        return {entry.key for entry in self._entries()}

    @contextmanager
    def adding(self) -> Iterator["Adder"]:
        """Add rows while the block lasts; other processes that want to add wait.

        Raises:
            DataError: the disk is full or fails; rows that were added are kept.
        """
        try:
            with self._locked():
                self._cut()
                try:
                    with _opened(self.array) as array, _opened(self.index) as index:
                        adder = Adder(array, index, self._rows(), self.row_bytes)
                        try:
                            yield adder
                        finally:
                            adder.flush()
                finally:
                    self._cut()
        except OSError as error:
            raise DataError(f"{self.folder} cannot be written: {error.strerror}") from error

    def view(self, rows: int) -> np.ndarray:
        """Return the first rows, (rows, *shape), read from disk when they are used."""
        if not rows:
            return np.zeros((0, *self.shape), dtype=self.dtype)
        return np.memmap(self.array, dtype=self.dtype, mode="r", shape=(rows, *self.shape))

    def _checked(self, entries: Sequence["Entry"]) -> list["Entry"]:
        """Return those whose row and note still have their checksum."""
        sound = []
        if entries and self.array.is_file():
            with self.array.open("rb") as file:
                for entry in entries:
                    file.seek(entry.row * self.row_bytes)
                    if entry.checksum(file.read(self.row_bytes)) == entry.crc:
                        sound.append(entry)
        return sound

    def _entries(self) -> Iterator["Entry"]:
        if self.index.is_file():
            with self.index.open("rb") as lines:
                for line in lines:
                    if not line.endswith(b"\n"):  # it is being written
                        return
                    try:
                        entry = Entry.of(**json.loads(line))
                    except (ValueError, TypeError):  # a fault of the disk: that row is decoded again
                        continue
                    if type(entry.row) is int and entry.row >= 0 and type(entry.key) is str:
                        yield entry

    def _rows(self) -> int:
        """Return how many whole rows there are that an entry may refer to; a damaged entry may say any number."""
        whole = self.array.stat().st_size // self.row_bytes if self.array.is_file() else 0
        return min(whole, 1 + max((entry.row for entry in self._entries()), default=-1))

    def _cut(self) -> None:
        """Drop what a process that was killed, or a full disk, left behind the last whole row and line."""
        lines = self.index.read_bytes().rfind(b"\n") + 1 if self.index.is_file() else 0
        for file, size in ((self.array, self._rows() * self.row_bytes), (self.index, lines)):
            if file.is_file() and file.stat().st_size > size:
                os.truncate(file, size)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        lock = FileLock(self.folder / ".lock", mode=0o600)  # made here, since it cannot be sent to workers
        try:
            lock.acquire(timeout=0.2)
        except Timeout:
            print(f"waiting for another process that writes to {self.folder.parent}", flush=True)
            lock.acquire()
        try:
            yield
        finally:
            lock.release()


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the index.

    Attributes:
        key: what the row is found by.
        row: where it lies.
        written: the note as JSON, which takes a quarter of the memory.
        crc: CRC-32 of key, note and row.
    """

    key: str
    row: int
    written: str
    crc: int = 0

    @classmethod
    def of(cls, key: str, row: int, note: dict[str, Any], crc: int = 0) -> "Entry":
        """Build from a note of anything that can be written as JSON."""
        return cls(key, row, json.dumps(note), crc)

    @property
    def note(self) -> dict[str, Any]:
        """What is known of the row."""
        return json.loads(self.written)

    def checksum(self, content: bytes) -> int:
        """Return the CRC-32 that this entry must have if those are its row's bytes."""
        return zlib.crc32(content, zlib.crc32(json.dumps([self.key, self.note]).encode()))


class Adder:
    """Appends rows to the open files of a `MappedRows`; a row exists once its line is in the index."""

    def __init__(self, array: BinaryIO, index: BinaryIO, rows: int, row_bytes: int) -> None:
        self.rows = rows
        self.row_bytes = row_bytes
        self._array = array
        self._index = index
        self._lines: list[bytes] = []

    def add(self, key: str, row: np.ndarray, note: dict[str, Any]) -> None:
        """Append one row under a key, with a note that can be written as JSON."""
        content = np.ascontiguousarray(row).tobytes()
        if len(content) != self.row_bytes:  # would move every later row
            raise ValueError(f"rows of {self.row_bytes} bytes are needed, found {len(content)}")
        # Written, not mapped: on a full disk a mapped file ends the process instead of raising.
        self._array.write(content)
        entry = Entry.of(key, self.rows, note)
        line = json.dumps({"key": key, "row": entry.row, "note": entry.note, "crc": entry.checksum(content)})
        self._lines.append(line.encode() + b"\n")
        self.rows += 1
        if len(self._lines) >= LINES_AT_ONCE:
            self.flush()

    def flush(self) -> None:
        """Bring everything to the disk, the rows before the lines that refer to them."""
        self._array.flush()
        os.fsync(self._array.fileno())
        self._index.write(b"".join(self._lines))
        self._index.flush()
        os.fsync(self._index.fileno())
        self._lines.clear()


class PixelStore:
    """Row → uint8 (S, S, C) in 0..255, read from disk when it is asked for. Read-only, and cheap to send to workers.

    Args:
        rows: where the pictures lie.
        places: row of the store → row on disk.
        digests: SHA-256 of each row's file.
        facts: of each row's picture.
    """

    def __init__(self, rows: MappedRows, *, places: np.ndarray, digests: list[str], facts: list[Facts]) -> None:
        self._rows = rows
        self._places = places
        self._digests = digests
        self.facts = facts
        self.boxes = np.asarray([fact.box for fact in facts], dtype=np.int64).reshape(-1, 4)
        self._open()

    def _open(self) -> None:
        self._pixels = self._rows.view(int(self._places.max(initial=-1)) + 1)

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, row: int) -> np.ndarray:
        return self._pixels[self._places[row]]

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_pixels"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._open()

    def settings_name(self) -> str:
        """Return the name of the settings that pictures were decoded with."""
        return self._rows.folder.name

    def file_digests(self) -> list[str]:
        """Return the SHA-256 of each row's file."""
        return self._digests

    def pixel_digests(self) -> list[str]:
        """Return the SHA-256 of each row's decoded picture; equal ones are the same image."""
        return [fact.pixels for fact in self.facts]

    def content_digest(self) -> str:
        """Return a SHA-256 over all files, in order."""
        return hashlib.sha256("".join(self._digests).encode()).hexdigest()

    def content(self, row: int) -> np.ndarray:
        """Return the part of a row's picture that is not padding, uint8 (h, w, C)."""
        top, bottom, left, right = self.boxes[row]
        return self[row][top:bottom, left:right]

    def mean(self, rows: np.ndarray) -> np.ndarray:
        """Return the mean per channel of some rows' pixels without padding, on 0..1, float64 (C,)."""
        total, count = np.zeros(self._pixels.shape[3]), 0
        for row in rows:
            content = self.content(int(row))
            total += content.sum(axis=(0, 1), dtype=np.float64)
            count += content.shape[0] * content.shape[1]
        return total / (255.0 * max(1, count))


def build_store(
    files: Sequence[Path],
    *,
    folder: Path,
    settings: Settings,
    on_unreadable: str,
    workers: int,
    progress: bool = True,
) -> tuple[PixelStore, list[tuple[int, str]]]:
    """Decode and fit every file that the store does not hold yet.

    A picture is known by its file's content and by the settings that change pixels, so collections share pictures, and
    a file that changes is decoded alone. Files that cannot be read are tried again each time.

    Args:
        files: one per row.
        folder: where stores are kept; only the user may enter it.
        settings: what else changes pixels.
        on_unreadable: error, or skip.
        workers: processes that decode.
        progress: show a progress bar.

    Returns:
        The store, whose rows are the readable files in order, and row and reason of each unreadable one.

    Raises:
        DataError: with every unreadable file; or the disk is too small.
    """
    _make_private(folder)
    rows = MappedRows(folder / _name(settings), shape=(settings.size_px, settings.size_px, settings.channels))
    keys = _keys(files, progress)
    found = rows.sound(keys)
    reasons: dict[str, str] = {}
    if missing := {key: file for key, file in zip(keys, files, strict=True) if key not in found}:
        require_space(folder, len(missing) * rows.row_bytes, advice="a smaller data.image_size_px")
        reasons = _decode(rows, missing, settings, workers, progress)
        found |= rows.sound(list(missing))
    unreadable = [
        (row, f"{files[row]}: {reasons.get(key, 'changed while it was read')}")
        for row, key in enumerate(keys)
        if key not in found
    ]
    if unreadable and (on_unreadable == "error" or len(unreadable) == len(files)):
        title = f"{len(unreadable)} of {len(files)} images cannot be read:"
        advice = "\nrepair or remove them"
        if on_unreadable == "error":
            advice += ", or go on without them: --data.on_unreadable skip"
        raise DataError(listed(title, [reason for _, reason in unreadable], limit=len(unreadable)) + advice)
    kept = [found[key] for key in keys if key in found]
    store = PixelStore(
        rows,
        places=np.array([entry.row for entry in kept], dtype=np.int64),
        digests=[entry.key for entry in kept],
        facts=[_facts(entry.note) for entry in kept],
    )
    return store, unreadable


def _decode(
    rows: MappedRows, files: Mapping[str, Path], settings: Settings, workers: int, progress: bool
) -> dict[str, str]:
    """Add the pictures of some files by key, and return key → reason of those that cannot be read."""
    reasons = {}
    with rows.adding() as adder:
        there = rows.sound(list(files))  # by a process that was waited for
        keys = [key for key in files if key not in there]
        decoded = decode_files([files[key] for key in keys], settings, workers=workers)
        bar = tqdm(
            zip(keys, decoded, strict=True), "decoding images", total=len(keys),
            disable=None if progress else True, unit="image", leave=False,
        )  # fmt: skip
        for key, result in bar:
            if result.image is None or result.facts is None:
                reasons[key] = result.reason
            else:
                adder.add(result.digest, result.image, asdict(result.facts))
    return reasons


def _facts(note: dict[str, Any]) -> Facts:
    texts = {name: sys.intern(note[name]) for name in ("format", "mode", "modality", "view")}  # few different ones
    return Facts(**{**note, **texts, "box": tuple(note["box"])})


def _name(settings: Settings) -> str:
    return hashlib.sha256(f"{VERSION}{settings}".encode()).hexdigest()[:16]


def _keys(files: Sequence[Path], progress: bool) -> list[str]:
    """Return the SHA-256 of each file; of one that cannot be opened, its name."""
    hidden = None if progress else True
    keys: list[str] = []
    with (
        ThreadPoolExecutor() as pool,  # hashing lets other threads run
        tqdm(desc="checking files", total=len(files), disable=hidden, unit="file", leave=False) as bar,
    ):
        for start in range(0, len(files), FILES_AT_ONCE):
            some = files[start : start + FILES_AT_ONCE]
            digests = zip(pool.map(file_digest, some), some, strict=True)
            keys += [digest if digest != NO_DIGEST else str(file) for digest, file in digests]
            bar.update(len(some))
    return keys


def _opened(path: Path) -> BinaryIO:
    """Open a file to append to, which only the user may read."""
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), "ab")


def _make_private(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)
    except OSError as error:
        raise DataError(f"the folder of decoded images {folder} cannot be made: {error.strerror}") from error


def require_space(folder: Path, needed: int, *, advice: str) -> None:
    """Refuse to begin what the disk has no room for.

    Args:
        folder: where it is to be written.
        needed: bytes.
        advice: how to need less.

    Raises:
        DataError: a twentieth of what is free would not be left.
    """
    free = shutil.disk_usage(folder).free
    if needed > 0.95 * free:
        raise DataError(
            f"{needed / 2**20:,.0f} MB are needed in {folder}, but only {free / 2**20:,.0f} MB are free: make room, "
            f"choose another output_dir, or {advice}"
        )
