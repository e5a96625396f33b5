"""The DICOM pixel chain: file → uint8 picture as a radiologist would see it. Nothing else knows pydicom.

Modality LUT or rescale → VOI LUT or window → inversion of MONOCHROME1 → 8 bits (DICOM PS3.3 C.11.1, C.11.2, C.7.6.3).
"""

import struct
import warnings
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.pixels.processing import apply_color_lut, apply_modality_lut, apply_voi, apply_windowing
from pydicom.pixels.utils import pixel_array
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian, JPEGBaseline8Bit, generate_uid

from medxfer.data.intensity import scale_to_uint8, to_uint8
from medxfer.errors import DataError

COMPUTED_RADIOGRAPHY = UID("1.2.840.10008.5.1.4.1.1.1")
NEEDED = ("Rows", "Columns", "BitsAllocated", "SamplesPerPixel", "PhotometricInterpretation")


def is_dicom(header: bytes) -> bool:
    """Return whether a file beginning with these bytes (at least 132 are best) is DICOM, with or without preamble."""
    if header[128:132] == b"DICM":
        return True
    if len(header) < 8:
        return False
    group, element = struct.unpack("<HH", header[:4])
    # Without preamble a data set begins with group 2 or 8 and a short first element.
    known_vr = header[4:6] in (b"UL", b"UI", b"CS", b"OB", b"SH", b"LO", b"DA", b"TM")
    short = struct.unpack("<I", header[4:8])[0] <= 64
    return group in (2, 8) and element < 0x20 and (known_vr or short)


def read_dicom(path: Path, *, max_pixels: int) -> np.ndarray:
    """Read one picture.

    The first of several windows or lookup tables is used; without any, robust percentiles of the pixels that are not
    padding. Empty or corrupt window tags count as absent. Overlays are ignored. Padding becomes black.

    Args:
        path: a DICOM file.
        max_pixels: a larger picture is refused before it is decoded.

    Returns:
        uint8 (H, W, 1), or (H, W, 3) for colour.

    Raises:
        DataError: the reason in one line, without any tag's value that could name a patient.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's remarks quote tag values; what matters is checked here
        dataset = _parse(path)
        _check(dataset, max_pixels)
        pixels = _decode(dataset)
        if pixels.ndim == 3 or dataset.PhotometricInterpretation == "PALETTE COLOR":
            return _colour(pixels, dataset)
        return _grey(pixels, dataset)[..., np.newaxis]


def _parse(path: Path) -> Dataset:
    try:
        dataset = pydicom.dcmread(path, force=True)
    except OSError:
        raise
    except Exception as error:  # pydicom has exceptions of its own, and lets those of struct and codecs through
        raise DataError("is a damaged DICOM file: its tags cannot be read") from error
    meta = getattr(dataset, "file_meta", None)
    if meta is None:
        meta = dataset.file_meta = FileMetaDataset()
    if "TransferSyntaxUID" not in meta:
        implicit = dataset.original_encoding[0] is not False
        meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian
    if not isinstance(meta.TransferSyntaxUID, UID):
        raise DataError("is a damaged DICOM file: it names more than one transfer syntax, or none")
    return dataset


def _check(dataset: Dataset, max_pixels: int) -> None:
    try:
        if not any(dataset.get(name) for name in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
            raise DataError("is a DICOM file without a picture (no pixel data)")
        missing = [name for name in NEEDED if dataset.get(name) in (None, "")]
        if missing:
            raise DataError(f"is a DICOM file that lacks {', '.join(missing)}")
        frames, pixels = int(dataset.get("NumberOfFrames") or 1), int(dataset.Rows) * int(dataset.Columns)
    except DataError:
        raise
    except Exception as error:  # tags are converted when they are first read
        raise DataError("is a damaged DICOM file: its image tags cannot be read") from error
    if frames > 1:
        raise DataError(f"is a DICOM file with {frames} frames; one picture is needed: export the frame you want")
    if pixels > max_pixels:
        raise DataError(f"has {dataset.Columns} × {dataset.Rows} pixels, more than the {max_pixels:,} that are allowed")


def _decode(dataset: Dataset) -> np.ndarray:
    syntax = dataset.file_meta.TransferSyntaxUID
    try:
        # GDCM ends the whole process on some damaged streams of this syntax.
        pixels = pixel_array(dataset, decoding_plugin="pillow" if syntax == JPEGBaseline8Bit else "")
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # decoders of many libraries; a panic in one of them is not even an Exception
        name = syntax.name if not syntax.is_private else "a private transfer syntax"
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = lines[-1] if lines else type(error).__name__
        raise DataError(f"is a DICOM file whose pixels cannot be decoded ({name}): {reason}") from error
    if pixels.ndim not in (2, 3) or 0 in pixels.shape:
        raise DataError(f"is a DICOM file with pixels of shape {pixels.shape}; one picture is needed")
    return pixels


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
        ends = sorted((int(value), int(limit if limit is not None else value)))
    except (TypeError, ValueError):
        return np.zeros(stored.shape, dtype=bool)
    padding = (stored >= ends[0]) & (stored <= ends[1])
    return padding if not padding.all() else np.zeros(stored.shape, dtype=bool)


def _modality(stored: np.ndarray, dataset: Dataset) -> np.ndarray:
    try:
        values = apply_modality_lut(stored, dataset)
        return values if _shows(values, stored) else stored
    except (ValueError, TypeError, AttributeError, IndexError, KeyError, NotImplementedError):
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
    except (ValueError, TypeError, AttributeError, IndexError, KeyError, NotImplementedError, struct.error):
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
    except (ValueError, TypeError, AttributeError, IndexError, KeyError, NotImplementedError):
        return None


def write_dicom(
    path: Path,
    pixels: np.ndarray,
    *,
    patient_id: str,
    photometric: str = "MONOCHROME2",
    bits_stored: int = 12,
    window: tuple[float, float] | None = None,
) -> None:
    """Write a computed radiograph, uncompressed; for synthetic pictures.

    Args:
        path: the file.
        pixels: uint16 (H, W), at most 2**bits_stored − 1.
        patient_id: the tag of that name.
        photometric: MONOCHROME1 or MONOCHROME2.
        bits_stored: depth.
        window: centre and width; None: no such tags.
    """
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = COMPUTED_RADIOGRAPHY
    uid = generate_uid(entropy_srcs=[str(path.name), patient_id])
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = uid
    dataset.PatientID = patient_id
    dataset.Modality = "CR"
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = photometric
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, bits_stored, bits_stored - 1
    dataset.PixelRepresentation = 0
    if window is not None:
        dataset.WindowCenter, dataset.WindowWidth = window
    dataset.PixelData = np.ascontiguousarray(pixels.astype("<u2")).tobytes()
    dataset.save_as(path, enforce_file_format=True)
