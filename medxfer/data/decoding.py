"""Image file → fitted picture with its facts, one by one or many at once in processes that may end."""

import functools
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medxfer.data.fitting import content_box, fit_image
from medxfer.data.isolation import Limits, isolated
from medxfer.data.reading import MAX_PIXELS, read_picture
from medxfer.errors import DataError

NO_DIGEST = ""
"""Of a file that cannot even be opened."""

BYTES_PER_PIXEL = 40
"""What decoding takes at its peak: several copies, some of them of 64 bits."""

OTHER_MB = 4096
"""Address space of a process besides its pictures."""


@dataclass(frozen=True)
class Settings:
    """Everything besides the file that changes pixels.

    Attributes:
        channels: 1 or 3.
        size_px: side of the picture.
        fit: pad, crop or stretch.
        max_pixels: a larger picture is refused.
        frame: first or middle of several; None: several are refused.
    """

    channels: int
    size_px: int
    fit: str
    max_pixels: int = MAX_PIXELS
    frame: str | None = None


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of a picture before it was fitted.

    Attributes:
        pixels: SHA-256 of the decoded picture; equal ones are the same image, whatever their files are.
        width: in pixels.
        height: in pixels.
        format: PNG, JPEG, TIFF, BMP, WEBP or DICOM.
        mode: how the file stores colours.
        modality: as DICOM says it, or empty.
        view: as DICOM says it, or empty.
        box: top, bottom, left and right of what is not padding in the fitted picture.
    """

    pixels: str
    width: int
    height: int
    format: str
    mode: str
    modality: str
    view: str
    box: tuple[int, int, int, int]


@dataclass(frozen=True)
class Decoded:
    """One file: its SHA-256, and its picture uint8 (S, S, C) with its facts, or why it cannot be read."""

    digest: str
    image: np.ndarray | None = None
    facts: Facts | None = None
    reason: str = ""


def decode_file(file: Path, settings: Settings) -> Decoded:
    """Decode and fit one file; never raises for a file that cannot be read."""
    before = _state(file)
    digest = file_digest(file)
    try:
        picture = read_picture(file, channels=settings.channels, max_pixels=settings.max_pixels, frame=settings.frame)
    except DataError as error:
        return Decoded(digest, reason=str(error).removeprefix(f"{file}: "))
    if _state(file) != before:  # the digest may be that of another picture
        return Decoded(digest, reason="changed while it was read")
    height, width = picture.pixels.shape[:2]
    rows, columns = content_box(height, width, size_px=settings.size_px, fit=settings.fit)
    facts = Facts(
        pixels=hashlib.sha256(f"{picture.pixels.shape}".encode() + picture.pixels.tobytes()).hexdigest(),
        width=width,
        height=height,
        format=picture.format,
        mode=picture.mode,
        modality=picture.modality,
        view=picture.view,
        box=(rows.start, rows.stop, columns.start, columns.stop),
    )
    return Decoded(digest, fit_image(picture.pixels, size_px=settings.size_px, fit=settings.fit), facts)


def decode_files(files: Sequence[Path], settings: Settings, *, workers: int) -> Iterator[Decoded]:
    """Decode many files, in order, in other processes; one that ends its process gets that for a reason."""
    return isolated(
        functools.partial(decode_file, settings=settings),
        [file.absolute() for file in files],  # a process may have begun in another folder
        lost=_lost,
        workers=max(1, workers),
        limits=Limits(memory_mb=OTHER_MB + BYTES_PER_PIXEL * settings.max_pixels // 2**20),
    )


def file_digest(file: Path) -> str:
    """Return the SHA-256 of a file, or `NO_DIGEST` if it cannot be read."""
    try:
        if not file.is_file():  # a pipe would be waited for
            return NO_DIGEST
        with file.open("rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError:
        return NO_DIGEST


def _state(file: Path) -> tuple[int, ...]:
    try:
        status = file.stat()
    except OSError:
        return ()
    return status.st_ino, status.st_size, status.st_mtime_ns


def _lost(file: Path) -> Decoded:
    return Decoded(file_digest(file), reason="is damaged: its decoder crashed, took too long or too much memory")
