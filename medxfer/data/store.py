"""Pictures decoded once: a memory-mapped uint8 array on disk that all workers and processes share."""

import hashlib
import io
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from medxfer.data.fitting import content_box, fit_image
from medxfer.data.reading import read_image
from medxfer.errors import DataError, listed

VERSION = 2
"""Counts changes of decoding or fitting that change pixels; older stores are then not used."""

STALE_SECONDS = 24 * 3600


@dataclass(frozen=True)
class Settings:
    """Everything besides the files that changes pixels."""

    channels: int
    size_px: int
    fit: str


@dataclass(frozen=True)
class Decoded:
    """One file: its digest, and its picture with the box of what is not padding, or why it cannot be read."""

    digest: str
    image: np.ndarray | None = None
    box: tuple[int, int, int, int] = (0, 0, 0, 0)
    reason: str = ""


class PixelStore:
    """Row → uint8 (S, S, C) in 0..255, read from disk when it is asked for. Read-only, and cheap to send to workers.

    Args:
        array: the .npy file.
        index: the .json file beside it: digest and content box per row.
    """

    def __init__(self, array: Path, index: Path) -> None:
        self.array = array
        self.index = index
        content = json.loads(index.read_text(encoding="utf-8"))
        self._digests: list[str] = content["digests"]
        self.boxes = np.asarray(content["boxes"], dtype=np.int64).reshape(-1, 4)
        self._pixels = np.load(array, mmap_mode="r")

    def __len__(self) -> int:
        return len(self._pixels)

    def __getitem__(self, row: int) -> np.ndarray:
        return self._pixels[row]

    def __getstate__(self) -> dict[str, Any]:
        return {"array": self.array, "index": self.index}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)

    def file_digests(self) -> list[str]:
        """Return the SHA-256 of each row's file."""
        return self._digests

    def content_digest(self) -> str:
        """Return a SHA-256 over all files, in order."""
        return hashlib.sha256("".join(self._digests).encode()).hexdigest()

    def mean(self, rows: np.ndarray) -> np.ndarray:
        """Return the mean per channel of some rows' pixels without padding, on 0..1, float64 (C,)."""
        total, count = np.zeros(self._pixels.shape[3]), 0
        for row in rows:
            top, bottom, left, right = self.boxes[row]
            content = self._pixels[row, top:bottom, left:right]
            total += content.sum(axis=(0, 1), dtype=np.float64)
            count += content.shape[0] * content.shape[1]
        return total / (255.0 * max(1, count))


def build_store(
    files: Sequence[Path],
    *,
    folder: Path,
    channels: int,
    size_px: int,
    fit: str,
    on_unreadable: str,
    num_workers: int,
    progress: bool = True,
) -> tuple[PixelStore, list[tuple[int, str]]]:
    """Decode and fit every file, or open the store that holds them already.

    A store is named by the content of its files and by the settings that change pixels. It is written under a temporary
    name and then renamed, so that a killed build leaves nothing that looks finished.

    Args:
        files: one per row.
        folder: where stores are kept; only the user may enter it.
        channels: 1 or 3.
        size_px: side of the pictures.
        fit: pad, crop or stretch.
        on_unreadable: error, or skip.
        num_workers: processes that decode; 0: this one.
        progress: show a progress bar.

    Returns:
        The store, whose rows are the readable files in order, and row and reason of each unreadable one.

    Raises:
        DataError: with every unreadable file; or the disk is too small.
    """
    settings = Settings(channels, size_px, fit)
    _make_private(folder)
    digests = [
        _digest(file)
        for file in tqdm(files, "checking files", disable=None if progress else True, unit="file", leave=False)
    ]
    key = hashlib.sha256(f"{VERSION}{settings}{''.join(digests)}".encode()).hexdigest()[:32]
    array, index = folder / f"pixels-{key}.npy", folder / f"pixels-{key}.json"
    if not _is_whole(array, index, settings) or _heals(files, index, settings):
        _require_space(folder, len(files) * size_px * size_px * channels)
        _write(files, array, index, settings, num_workers=num_workers, progress=progress)
    unreadable = [(row, reason) for row, reason in json.loads(index.read_text(encoding="utf-8"))["unreadable"]]
    # The reasons name files; a store may be found again under other names, so the name is the caller's.
    unreadable = [(row, f"{files[row]}: {reason}") for row, reason in unreadable]
    if unreadable and (on_unreadable == "error" or len(unreadable) == len(files)):
        title = f"{len(unreadable)} of {len(files)} images cannot be read:"
        advice = "\nrepair or remove them"
        if on_unreadable == "error":
            advice += ", or go on without them: --data.on_unreadable skip"
        raise DataError(listed(title, [reason for _, reason in unreadable], limit=len(unreadable)) + advice)
    return PixelStore(array, index), unreadable


def decode_file(file: Path, settings: Settings) -> Decoded:
    """Decode and fit one file; never raises for a file that cannot be read."""
    digest = _digest(file)
    try:
        image = read_image(file, channels=settings.channels)
    except DataError as error:
        return Decoded(digest, reason=str(error).removeprefix(f"{file}: "))
    rows, columns = content_box(*image.shape[:2], size_px=settings.size_px, fit=settings.fit)
    box = (rows.start, rows.stop, columns.start, columns.stop)
    return Decoded(digest, fit_image(image, size_px=settings.size_px, fit=settings.fit), box)


def _decode_chunk(files: Sequence[Path], settings: Settings) -> list[Decoded]:
    return [decode_file(file, settings) for file in files]


def _decoded(files: Sequence[Path], settings: Settings, num_workers: int) -> Iterator[Decoded]:
    chunk = 8
    if num_workers < 2 or len(files) < 4 * chunk:
        for file in files:
            yield decode_file(file, settings)
        return
    done = 0
    try:
        with _pool(num_workers) as pool:
            waiting = []
            for start in range(0, len(files), chunk):
                waiting.append(pool.submit(_decode_chunk, files[start : start + chunk], settings))
                if len(waiting) > 4 * num_workers:  # keeps the pictures in memory few
                    results = waiting.pop(0).result()
                    done += len(results)
                    yield from results
            for future in waiting:
                results = future.result()
                done += len(results)
                yield from results
    except BrokenProcessPool:  # one of the files ended its process: find out which
        yield from _decoded_one_by_one(files[done:], settings)


def _decoded_one_by_one(files: Sequence[Path], settings: Settings) -> Iterator[Decoded]:
    """Decode in a process that may end, and say which file ended it."""
    waiting = list(files)
    while waiting:
        with _pool(1) as pool:
            try:
                while waiting:
                    yield pool.submit(decode_file, waiting[0], settings).result()
                    waiting.pop(0)
            except BrokenProcessPool:
                file = waiting.pop(0)
                yield Decoded(_digest(file), reason="is damaged: its decoder ended the process that read it")


def _pool(workers: int) -> ProcessPoolExecutor:
    # Forked processes could inherit a lock that some thread of torch or MLflow holds.
    return ProcessPoolExecutor(workers, mp_context=get_context("forkserver"))


def _write(
    files: Sequence[Path], array: Path, index: Path, settings: Settings, *, num_workers: int, progress: bool
) -> None:
    _remove_stale(array.parent)
    side = settings.size_px
    digests, boxes, unreadable = [], [], []
    results = _decoded(files, settings, num_workers)
    bar = tqdm(
        results, "decoding images", total=len(files), disable=None if progress else True, unit="image", leave=False
    )
    path: Path | None = None
    try:
        # Written, not mapped: on a full disk a mapped file ends the process instead of raising.
        with tempfile.NamedTemporaryFile(dir=array.parent, prefix=".writing-", suffix=".npy", delete=False) as file:
            path = Path(file.name)
            file.write(_npy_header((len(files), side, side, settings.channels)))
            for row, result in enumerate(bar):
                if result.image is None:
                    unreadable.append((row, result.reason))
                    continue
                file.write(result.image.tobytes())
                digests.append(result.digest)
                boxes.append(result.box)
            file.seek(0)
            file.write(_npy_header((len(digests), side, side, settings.channels)))
            file.flush()
            os.fsync(file.fileno())
        _write_json(index, {"digests": digests, "boxes": boxes, "unreadable": unreadable, **vars(settings)})
        path.replace(array)
    except BaseException as error:
        if path is not None:
            path.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise DataError(f"the decoded images cannot be written to {array.parent}: {error.strerror}") from error
        raise


def _npy_header(shape: tuple[int, ...]) -> bytes:
    """Return the header of a .npy file of uint8; NumPy pads it so that its length does not depend on the rows."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return file.getvalue()


def _write_json(path: Path, content: dict[str, Any]) -> None:
    with tempfile.NamedTemporaryFile(
        "w", dir=path.parent, prefix=".writing-", suffix=".json", delete=False, encoding="utf-8"
    ) as file:
        json.dump(content, file)
        file.flush()
        os.fsync(file.fileno())
    Path(file.name).replace(path)


def _is_whole(array: Path, index: Path, settings: Settings) -> bool:
    """Check a store that is found: its index, its header and its size."""
    if not (array.is_file() and index.is_file()):
        return False
    try:
        rows = len(json.loads(index.read_text(encoding="utf-8"))["digests"])
        pixels = np.load(array, mmap_mode="r")
    except (OSError, ValueError, KeyError, EOFError):
        return False
    wanted = (rows, settings.size_px, settings.size_px, settings.channels)
    return pixels.shape == wanted and pixels.dtype == np.uint8


def _heals(files: Sequence[Path], index: Path, settings: Settings) -> bool:
    """Return whether a file that could not be read, for want of a decoder or by a fault of the disk, now can.

    It is tried in a process of its own: its decoder may be what ended one before.
    """
    failed = [files[row] for row, _ in json.loads(index.read_text(encoding="utf-8"))["unreadable"]]
    return any(result.image is not None for result in _decoded_one_by_one(failed, settings))


def _digest(file: Path) -> str:
    try:
        with file.open("rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError:
        return "unreadable"


def _make_private(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)
    except OSError as error:
        raise DataError(f"the folder of decoded images {folder} cannot be made: {error.strerror}") from error


def _require_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > 0.95 * free:
        raise DataError(
            f"the decoded images need {needed / 2**20:,.0f} MB in {folder}, but only {free / 2**20:,.0f} MB are free: "
            "make room, choose another output_dir, or a smaller data.image_size_px"
        )


def _remove_stale(folder: Path) -> None:
    for path in folder.glob(".writing-*"):
        try:
            if time.time() - path.stat().st_mtime > STALE_SECONDS:
                path.unlink()
        except FileNotFoundError:
            continue  # another process was quicker
