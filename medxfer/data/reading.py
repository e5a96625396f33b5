"""Any image file → uint8 (H, W, C). Decides which decoder, by content and from a fixed list."""

import os
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from medxfer.data.dicom import is_dicom, read_dicom
from medxfer.data.intensity import to_uint8
from medxfer.errors import DataError

FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "WEBP")
"""What Pillow may decode here; DICOM comes besides."""

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".jfif", ".tif", ".tiff", ".bmp", ".webp", ".dcm", ".dicom"})
"""What a scan of a folder takes for an image; a file's content decides how it is read."""

MAX_PIXELS = 150_000_000
"""Largest picture that is decoded; an X-ray has at most about 25 million."""

HEADER_BYTES = 132 + 64

ORIENTATION, PHOTOMETRIC, BITS_PER_SAMPLE, SAMPLE_FORMAT = 0x0112, 262, 258, 339
WHITE_IS_ZERO = 0
"""Tags of TIFF and EXIF."""


def read_image(path: Path, *, channels: Literal[1, 3] | int, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Decode an image file.

    Deeper pictures are brought to 8 bits by robust percentiles. EXIF orientation is applied, transparency is shown on
    black, colours become grey by luminance (ITU-R 601) and grey is repeated, as `channels` wants.

    Args:
        path: PNG, JPEG, TIFF, BMP, WebP or DICOM, whatever its name ends in.
        channels: 1 or 3.
        max_pixels: a larger picture is refused before it is decoded.

    Returns:
        uint8 (H, W, channels) in 0..255.

    Raises:
        DataError: one line with the path and the reason.
    """
    try:
        with path.open("rb") as file:
            header = file.read(HEADER_BYTES)
        if not header:
            raise DataError("is empty")
        image = read_dicom(path, max_pixels=max_pixels) if is_dicom(header) else _read_picture(path, max_pixels)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or 'cannot be read'}") from error
    return _with_channels(image, channels)


def find_images(folder: Path) -> list[Path]:
    """Return the images below a folder, sorted: by suffix, or DICOM whatever its name; hidden files are left out."""
    return sorted(_walk(folder))


def _walk(folder: Path) -> Iterator[Path]:
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            path = Path(parent, name)
            if name.startswith("."):
                continue
            # DICOM files are often named by their UID, or end in .IMA and the like.
            if path.suffix.lower() in IMAGE_SUFFIXES or _is_dicom_file(path):
                yield path


def _is_dicom_file(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return is_dicom(file.read(HEADER_BYTES))
    except OSError:
        return False


def _read_picture(path: Path, max_pixels: int) -> np.ndarray:
    """Decode with Pillow: uint8 (H, W, 1) or (H, W, 3)."""
    try:
        with path.open("rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit is ours, see below
            # Opened by name, Pillow maps uncompressed TIFFs and takes their sides for swapped by EXIF already.
            picture = Image.open(file, formats=FORMATS)
            width, height = picture.size
            if width * height > max_pixels:
                raise DataError(f"has {width} × {height} pixels, more than the {max_pixels:,} that are allowed")
            # A camera's JPEG may hold previews and depth maps behind the picture (MPO).
            if picture.format != "MPO" and getattr(picture, "n_frames", 1) > 1:
                raise DataError(
                    f"holds {getattr(picture, 'n_frames', 1)} pictures; one is needed: save the one you want"
                )
            if _is_deep_colour(picture):
                return _deep_colour(path, picture)
            picture.load()
            tags = getattr(picture, "tag_v2", {})  # which a turned copy lacks
            return _to_array(ImageOps.exif_transpose(picture), tags)
    except UnidentifiedImageError as error:
        raise DataError("is not a PNG, JPEG, TIFF, BMP, WebP or DICOM image") from error
    except Image.DecompressionBombError as error:
        raise DataError(f"has more than the {max_pixels:,} pixels that are allowed") from error
    except DataError:
        raise
    except Exception as error:  # Pillow lets the exceptions of struct and of arithmetic through
        if isinstance(error, OSError) and error.errno is not None:
            raise
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"is damaged: {reason}") from error


def _is_deep_colour(picture: Image.Image) -> bool:
    """Return whether a picture has 16 bits and several channels, of which Pillow would drop the lower eight."""
    return not picture.mode.startswith("I") and any(";16" in str(tile[3]) for tile in getattr(picture, "tile", ()))


def _deep_colour(path: Path, picture: Image.Image) -> np.ndarray:
    """Decode with OpenCV, on black, and scale all channels by one range: uint8 (H, W, 1) or (H, W, 3)."""
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
