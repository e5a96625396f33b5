"""Any image file → uint8 (H, W, C). Decides which decoder, by content and from a fixed list."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from medxfer.data.dicom import read_dicom
from medxfer.data.dicom_files import is_dicom
from medxfer.data.intensity import to_uint8
from medxfer.errors import DataError

FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "WEBP")
"""What Pillow may decode here; DICOM comes besides."""

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".jfif", ".tif", ".tiff", ".bmp", ".webp", ".dcm", ".dicom"})
"""What a scan of a folder takes for an image; a file's content decides how it is read."""

MAX_PIXELS = 150_000_000
"""Largest picture that is decoded unless `data.max_pixels` says otherwise; an X-ray has at most about 25 million."""

HEADER_BYTES = 132 + 64

ORIENTATION, PHOTOMETRIC, BITS_PER_SAMPLE, SAMPLE_FORMAT = 0x0112, 262, 258, 339
WHITE_IS_ZERO = 0
"""Tags of TIFF and EXIF."""


@dataclass(frozen=True)
class Picture:
    """A decoded image file, and how the file stores it.

    Attributes:
        pixels: uint8 (H, W, C) in 0..255.
        format: one of `FORMATS`, or DICOM.
        mode: Pillow's mode (L, RGB, I;16…), or DICOM's photometric interpretation and bits.
        modality: DICOM's tag; empty if unknown.
        view: DICOM's view position; empty if unknown.
    """

    pixels: np.ndarray
    format: str
    mode: str
    modality: str = ""
    view: str = ""


def read_image(path: Path, *, channels: int, max_pixels: int = MAX_PIXELS, frame: str | None = None) -> np.ndarray:
    """Decode an image file to uint8 (H, W, channels) in 0..255; see `read_picture`."""
    return read_picture(path, channels=channels, max_pixels=max_pixels, frame=frame).pixels


def read_picture(path: Path, *, channels: int, max_pixels: int = MAX_PIXELS, frame: str | None = None) -> Picture:
    """Decode an image file.

    Deeper pictures are brought to 8 bits by robust percentiles. EXIF orientation is applied, transparency is shown on
    black, colours become grey by luminance (ITU-R 601) and grey is repeated, as `channels` wants.

    Args:
        path: PNG, JPEG, TIFF, BMP, WebP or DICOM, whatever its name ends in.
        channels: 1 or 3.
        max_pixels: a larger picture is refused before it is decoded.
        frame: first or middle of several pictures in a file; None: several are refused.

    Raises:
        DataError: one line with the path and the reason.
    """
    try:
        if path.exists() and not (path.is_file() or path.is_dir()):  # a pipe would be waited for
            raise DataError("is not a file that holds an image")
        with path.open("rb") as file:
            header = file.read(HEADER_BYTES)
        if not header:
            raise DataError("is empty")
        if is_dicom(header):
            film = read_dicom(path, max_pixels=max_pixels, frame=frame)
            picture = Picture(film.pixels, "DICOM", film.mode, film.modality, film.view)
        else:
            picture = _read_picture(path, max_pixels, frame)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or 'cannot be read'}") from error
    return replace(picture, pixels=_with_channels(picture.pixels, channels))


def find_images(folder: Path) -> list[Path]:
    """Return the images below a folder, sorted: by suffix, or DICOM whatever its name; hidden files are left out."""
    return sorted(_walk(folder))


def _walk(folder: Path) -> Iterator[Path]:
    seen = {os.path.realpath(folder)}
    for parent, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in list(folders):  # links may lead back, or twice to one place
            place = os.path.realpath(os.path.join(parent, name))
            if place in seen:
                folders.remove(name)
            seen.add(place)
        for name in names:
            path = Path(parent, name)
            if name.startswith("."):
                continue
            # DICOM files are often named by their UID, or end in .IMA and the like.
            if path.suffix.lower() in IMAGE_SUFFIXES or (path.is_file() and is_dicom_file(path)):
                yield path


def is_dicom_file(path: Path) -> bool:
    """Return whether a file is DICOM by its content; not if it cannot be read."""
    try:
        with path.open("rb") as file:
            return is_dicom(file.read(HEADER_BYTES))
    except OSError:
        return False


def _read_picture(path: Path, max_pixels: int, frame: str | None) -> Picture:
    """Decode with Pillow: uint8 (H, W, 1) or (H, W, 3)."""
    try:
        with path.open("rb") as file, _own_limit():
            # Opened by name, Pillow maps uncompressed TIFFs and takes their sides for swapped by EXIF already.
            picture = Image.open(file, formats=FORMATS)
            _check_size(picture, max_pixels)
            _choose_frame(picture, frame)
            _check_size(picture, max_pixels)
            kind = (str(picture.format).replace("MPO", "JPEG"), _stored_mode(picture))
            if _is_deep_colour(picture):
                return Picture(_deep_colour(path, picture), *kind)
            picture.load()
            tags = getattr(picture, "tag_v2", {})  # which a turned copy lacks
            return Picture(_to_array(ImageOps.exif_transpose(picture), tags), *kind)
    except UnidentifiedImageError as error:
        raise DataError("is not a PNG, JPEG, TIFF, BMP, WebP or DICOM image") from error
    except DataError:
        raise
    except Exception as error:  # Pillow lets the exceptions of struct and of arithmetic through
        if isinstance(error, OSError) and error.errno is not None:
            raise
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"is damaged: {reason}") from error


@contextmanager
def _own_limit() -> Iterator[None]:
    """Lift Pillow's own limit of size, which is checked here and may be set higher."""
    before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


def _check_size(picture: Image.Image, max_pixels: int) -> None:
    width, height = picture.size
    if width * height > max_pixels:
        raise DataError(f"has {width} × {height} pixels, more than the {max_pixels:,} that are allowed")


def _choose_frame(picture: Image.Image, frame: str | None) -> None:
    frames = getattr(picture, "n_frames", 1)
    # A camera's JPEG may hold previews and depth maps behind the picture (MPO).
    if frames == 1 or picture.format == "MPO":
        return
    if frame is None:
        raise DataError(
            f"holds {frames} pictures; one is needed: save the one you want, or choose it: --data.frame first "
            "(or middle)"
        )
    picture.seek((frames - 1) // 2 if frame == "middle" else 0)


def _stored_mode(picture: Image.Image) -> str:
    """Return Pillow's mode, with the depth of what it would cut to 8 bits."""
    return f"{picture.mode};16" if _is_deep_colour(picture) else picture.mode


def _is_deep_colour(picture: Image.Image) -> bool:
    """Return whether a picture has 16 bits and several channels, of which Pillow would drop the lower eight."""
    return not picture.mode.startswith("I") and any(";16" in str(tile[3]) for tile in getattr(picture, "tile", ()))


def _deep_colour(path: Path, picture: Image.Image) -> np.ndarray:
    """Decode with OpenCV, on black, and scale all channels by one range: uint8 (H, W, 1) or (H, W, 3)."""
    if picture.tell():
        raise DataError(f"is a {picture.format} of 16 bits in colour, of which only the first picture can be read")
    pixels = cv2.imdecode(np.fromfile(path, dtype=np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None or pixels.ndim != 3 or picture.mode not in ("RGB", "RGBA", "LA"):
        raise DataError(f"is a {picture.format} of 16 bits and mode {picture.mode}, which cannot be read: use 8 bits")
    colours = pixels[..., 2::-1].astype(np.float32)  # OpenCV's order is blue, green, red
    visible = None
    if pixels.shape[2] == 4:
        opacity = pixels[..., 3:].astype(np.float32) / (2**16 - 1)
        colours, visible = colours * opacity, np.broadcast_to(opacity > 0, colours.shape)
    scaled = Image.fromarray(to_uint8(colours, valid=visible))
    scaled.getexif()[ORIENTATION] = picture.getexif().get(ORIENTATION, 1)
    turned = np.asarray(ImageOps.exif_transpose(scaled))
    return turned[..., :1] if picture.mode == "LA" else turned


def _to_array(picture: Image.Image, tags: Mapping[int, Any]) -> np.ndarray:
    if picture.mode.startswith("I") or picture.mode == "F":
        return _deep_grey(np.asarray(picture), tags)[..., np.newaxis]
    transparent = "transparency" in picture.info
    if picture.mode == "LA" or (picture.mode in ("1", "L") and transparent):
        return _on_black(picture.convert("RGBA"))[..., :1]
    if picture.mode in ("1", "L"):
        return np.asarray(picture.convert("L"))[..., np.newaxis]
    if transparent or picture.mode in ("RGBA", "PA", "RGBa", "La"):
        return _on_black(picture.convert("RGBA"))
    return np.asarray(picture.convert("RGB"))


def _deep_grey(values: np.ndarray, tags: Mapping[int, Any]) -> np.ndarray:
    """Numbers of more than 8 bits, as Pillow stores them, with the tags of a TIFF → uint8 (H, W)."""
    if values.dtype == np.int32 and tags.get(BITS_PER_SAMPLE) == (32,) and tags.get(SAMPLE_FORMAT, (1,))[0] == 1:
        values = values.view(np.uint32)
    grey = to_uint8(values)
    return 255 - grey if tags.get(PHOTOMETRIC) == WHITE_IS_ZERO else grey  # Pillow turns only 8 bits


def _on_black(picture: Image.Image) -> np.ndarray:
    black = Image.new("RGBA", picture.size, (0, 0, 0, 255))
    return np.asarray(Image.alpha_composite(black, picture).convert("RGB"))


def _with_channels(image: np.ndarray, channels: int) -> np.ndarray:
    if image.shape[2] == channels:
        return np.ascontiguousarray(image)
    if channels == 3:
        return np.repeat(image, 3, axis=2)
    return np.asarray(Image.fromarray(image).convert("L"))[..., np.newaxis]
