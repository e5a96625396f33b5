"""The DICOM pixel chain: file → uint8 picture as a radiologist would see it.

Modality LUT or rescale → VOI LUT or window → inversion of MONOCHROME1 → 8 bits (DICOM PS3.3 C.11.1, C.11.2, C.7.6.3).
"""

import re
import struct
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset
from pydicom.pixels.processing import apply_color_lut, apply_modality_lut, apply_voi, apply_windowing
from pydicom.pixels.utils import pixel_array
from pydicom.uid import JPEGBaseline8Bit, JPEGExtended12Bit

from medxfer.data import jpeg_extended
from medxfer.data.dicom_files import read_dataset, text_of
from medxfer.data.intensity import scale_to_uint8, to_uint8
from medxfer.errors import DataError

DAMAGED = (
    ValueError, TypeError, AttributeError, IndexError, KeyError, NotImplementedError, OverflowError, struct.error,
)  # fmt: skip
"""What pydicom raises on tables, slopes and windows that cannot be used."""


@dataclass(frozen=True)
class Radiograph:
    """A picture, and what its tags say that may matter for a label.

    Attributes:
        pixels: uint8 (H, W, 1), or (H, W, 3) for colour.
        mode: photometric interpretation and bits per sample.
        modality: of the machine: CR, DX, CT…; empty if unknown.
        view: AP, PA, LL…; empty if unknown.
    """

    pixels: np.ndarray
    mode: str
    modality: str
    view: str


def read_dicom(path: Path, *, max_pixels: int, frame: str | None) -> Radiograph:
    """Read one picture.

    The first of several windows or lookup tables is used; without any, robust percentiles of the pixels that are not
    padding. Empty or corrupt window tags count as absent. Overlays are ignored. Padding becomes black.

    Args:
        path: a DICOM file.
        max_pixels: a larger picture is refused before it is decoded.
        frame: first or middle of several; None: several are refused.

    Raises:
        DataError: the reason in one line, without any tag's value that could name a patient.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pydicom's remarks quote tag values; what matters is checked here
            return _read(path, max_pixels, frame)
    except (DataError, OSError):
        raise
    except Exception as error:  # pydicom converts a tag when it is first asked for, and can fail in many ways
        raise DataError(f"is a damaged DICOM file: {type(error).__name__} while its tags are read") from error


def _read(path: Path, max_pixels: int, frame: str | None) -> Radiograph:
    dataset, index = read_dataset(path, max_pixels=max_pixels, frame=frame)
    stored = _decode(dataset, index)
    _use_functional_groups(dataset, index)
    _sign_first_values(dataset)
    if stored.ndim == 3 or dataset.PhotometricInterpretation == "PALETTE COLOR":
        pixels = _colour(stored, dataset)
    else:
        pixels = _grey(stored, dataset)[..., np.newaxis]
    mode = f"{text_of(dataset, 'PhotometricInterpretation')} {dataset.get('BitsStored') or dataset.BitsAllocated}"
    return Radiograph(pixels, mode, text_of(dataset, "Modality"), text_of(dataset, "ViewPosition"))


def _use_functional_groups(dataset: Dataset, index: int) -> None:
    """Give an enhanced file's frame its own window and rescale, which lie in sequences (C.7.6.16.2.9, .10)."""
    frames, shared = (dataset.get(f"{name}FunctionalGroupsSequence") for name in ("PerFrame", "Shared"))
    for group in [*(frames[index : index + 1] if frames else []), *(shared[:1] if shared else [])]:
        for name in ("FrameVOILUTSequence", "PixelValueTransformationSequence"):
            for element in (group.get(name) or [[]])[0]:
                if element.tag not in dataset:
                    dataset.add(element)


def _sign_first_values(dataset: Dataset) -> None:
    """Read the first value that a table maps as signed where pixels are; files of implicit type often hold it so."""
    if dataset.get("PixelRepresentation") != 1:
        return
    for name in ("ModalityLUTSequence", "VOILUTSequence"):
        for item in dataset.get(name) or []:
            entries, first, bits = item.LUTDescriptor
            if int(first) >= 2**15:
                item.LUTDescriptor = [entries, int(first) - 2**16, bits]


def _decode(dataset: Dataset, index: int) -> np.ndarray:
    syntax = dataset.file_meta.TransferSyntaxUID
    plugin = ""
    # GDCM ends the whole process on some damaged streams of these syntaxes.
    if syntax == JPEGBaseline8Bit or (syntax == JPEGExtended12Bit and dataset.BitsAllocated == 8):
        plugin = "pillow"
    elif syntax == JPEGExtended12Bit:
        plugin = jpeg_extended.NAME
    try:
        pixels = pixel_array(dataset, index=index, decoding_plugin=plugin)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # decoders of many libraries; a panic in one of them is not even an Exception
        name = syntax.name if not syntax.is_private else "a private transfer syntax"
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = _without_values(lines[-1]) if lines else type(error).__name__
        raise DataError(f"is a DICOM file whose pixels cannot be decoded ({name}): {reason}") from error
    if pixels.ndim not in (2, 3) or 0 in pixels.shape:
        raise DataError(f"is a DICOM file with pixels of shape {pixels.shape}; one picture is needed")
    return pixels


def _without_values(reason: str) -> str:
    """Return pydicom's reason without the values of tags that it quotes.

    >>> _without_values("Unknown (0028,0004) 'Photometric Interpretation' value 'X'")
    "Unknown (0028,0004) 'Photometric Interpretation' value that is not allowed"
    """
    reason = re.sub(r"\s?<[^<>]* at 0x[0-9a-f]+>", "", reason)  # objects of Python, whose addresses differ each time
    return re.sub(r"(value(?: of)?) '[^']*'", r"\1 that is not allowed", reason)


def _colour(pixels: np.ndarray, dataset: Dataset) -> np.ndarray:
    bits = int(dataset.get("BitsStored") or dataset.BitsAllocated)
    if dataset.PhotometricInterpretation == "PALETTE COLOR":
        try:
            pixels = apply_color_lut(pixels, dataset)
        except (ValueError, AttributeError, IndexError, KeyError, TypeError) as error:
            raise DataError("is a DICOM file whose colour palette is damaged") from error
        bits = pixels.dtype.itemsize * 8
    if pixels.ndim != 3 or pixels.shape[2] != 3:
        raise DataError(f"is a DICOM file with pixels of shape {pixels.shape}; grey or three colours are needed")
    return scale_to_uint8(pixels, low=0, high=2**bits - 1) if bits != 8 else pixels.astype(np.uint8)


def _grey(stored: np.ndarray, dataset: Dataset) -> np.ndarray:
    picture = ~_padding(stored, dataset)
    values = _modality(stored, dataset)
    grey = _table(values, dataset)
    if grey is None or not _shows(grey[picture], stored[picture]):
        grey = _window(values, dataset)
    if grey is None or not _shows(grey[picture], stored[picture]):
        grey = to_uint8(values, valid=picture)
    if not _shows(grey[picture], stored[picture]):  # numbers beyond all bounds
        grey = to_uint8(stored, valid=picture)
    if dataset.PhotometricInterpretation == "MONOCHROME1" or dataset.get("PresentationLUTShape") == "INVERSE":
        grey = 255 - grey
    return np.where(picture, grey, 0).astype(np.uint8)


def _shows(shown: np.ndarray, stored: np.ndarray) -> bool:
    """Return whether anything is left to see; a table, slope or window beside all pixels counts as damaged."""
    return bool(np.ptp(shown) > 0 or np.ptp(stored) == 0)


def _padding(stored: np.ndarray, dataset: Dataset) -> np.ndarray:
    """Return which pixels are padding (C.7.5.1.1.2), bool (H, W); none if that would be all."""
    try:
        value = dataset.get("PixelPaddingValue")
        if value is None:
            return np.zeros(stored.shape, dtype=bool)
        limit = dataset.get("PixelPaddingRangeLimit")
        ends = sorted(_as_stored(end, stored.dtype) for end in (value, value if limit is None else limit))
    except (TypeError, ValueError, OverflowError):
        return np.zeros(stored.shape, dtype=bool)
    padding = (stored >= ends[0]) & (stored <= ends[1])
    return padding if not padding.all() else np.zeros(stored.shape, dtype=bool)


def _as_stored(value: Any, dtype: np.dtype) -> float:
    """Return a number in the pixels' own type: writers mix up signed and unsigned tags."""
    if not np.issubdtype(dtype, np.integer):
        return float(value)
    unsigned = np.dtype(f"u{dtype.itemsize}")
    return int(np.array(int(value) % 256**dtype.itemsize, dtype=unsigned).view(dtype))


def _modality(stored: np.ndarray, dataset: Dataset) -> np.ndarray:
    try:
        values = apply_modality_lut(stored, dataset)
        return values if _shows(values, stored) else stored
    except DAMAGED:
        return stored  # a damaged table or slope counts as absent


def _table(values: np.ndarray, dataset: Dataset) -> np.ndarray | None:
    """Apply the first VOI LUT; None without a usable one."""
    try:
        items = dataset.get("VOILUTSequence")
        if not items:
            return None
        if not np.issubdtype(values.dtype, np.integer):  # a rescale gives floating point, also by 1 and 0
            whole = np.rint(values)
            if not np.array_equal(whole, values):
                return None
            values = whole.astype(np.int64)
        shown = apply_voi(values, dataset, index=0)
        table = items[0].LUTData
        if isinstance(table, bytes):  # as OW
            entries = int(items[0].LUTDescriptor[0]) or 2**16
            table = np.frombuffer(table, "<u2" if dataset.original_encoding[1] else ">u2")[:entries]
        table = np.asarray(table)
        return scale_to_uint8(shown, low=float(table.min()), high=float(table.max()))
    except DAMAGED:
        return None


def _window(values: np.ndarray, dataset: Dataset) -> np.ndarray | None:
    """Apply the first window, so that it spans 0..255; None without a usable one."""
    if dataset.PhotometricInterpretation not in ("MONOCHROME1", "MONOCHROME2"):
        return None
    try:
        if dataset.get("WindowCenter") in (None, "") or dataset.get("WindowWidth") in (None, ""):
            return None
        with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
            low, high = apply_windowing(np.array([-1e30, 1e30]), dataset)
            sign = 1 if high > low else -1  # pydicom's range runs backwards below a negative slope
            return scale_to_uint8(
                sign * apply_windowing(values, dataset), low=float(sign * low), high=float(sign * high)
            )
    except DAMAGED:
        return None
