"""DICOM files → data sets that are safe to decode: header first, every size bounded before anything is unpacked."""

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import get_frame
from pydicom.filereader import read_file_meta_info
from pydicom.uid import (
    HTJ2K,
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    ImplicitVRLittleEndian,
    JPEG2000TransferSyntaxes,
    JPEGLSTransferSyntaxes,
    JPEGTransferSyntaxes,
    generate_uid,
)

from medxfer.errors import DataError

COMPUTED_RADIOGRAPHY = UID("1.2.840.10008.5.1.4.1.1.1")
NEEDED = ("Rows", "Columns", "BitsAllocated", "SamplesPerPixel", "PhotometricInterpretation")
PICTURES = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")

PREAMBLE = b"\0" * 128 + b"DICM"
GROUP_LENGTH_BYTES = 12
"""Of the element that says how long the meta information behind it is."""

UNDEFINED = 0xFFFFFFFF
"""Length of an element that ends by a delimiter."""

LARGE_TAG = "1 MB"
"""A tag above this is left on disk until it is asked for."""

HEADER_BYTES = 2**20
"""How much of a deflated file is unpacked to find its image tags."""

OTHER_TAGS_BYTES = 2**24
"""What a file that has to be read as a whole may hold besides its pixels."""

SAY_THEIR_SIZE = frozenset(
    [*JPEGTransferSyntaxes, *JPEGLSTransferSyntaxes, *JPEG2000TransferSyntaxes, HTJ2KLossless, HTJ2KLosslessRPCL, HTJ2K]
)
"""Syntaxes whose decoders believe the compressed stream rather than the tags."""

LONGEST_TEXT = 64
"""Of the tags that are kept, as the standard has it for texts of their kind (PS3.5 6.2)."""

JP2 = b"\0\0\0\x0cjP  \r\n\x87\n"
"""How a JPEG 2000 stream within boxes begins."""


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


def read_dataset(path: Path, *, max_pixels: int, frame: str | None) -> tuple[Dataset, int]:
    """Read a file that holds a picture; its header first, and the rest only if the picture is not too large.

    Args:
        path: a DICOM file.
        max_pixels: a larger picture is refused.
        frame: first or middle of several; None: several are refused.

    Returns:
        The data set, and which of its frames to decode.

    Raises:
        DataError: the reason in one line, without any tag's value that could name a patient.
        OSError: the file cannot be read.
    """
    meta = _meta(path)
    header = read_header(path)
    rows, columns, frames = _check_size(header, max_pixels, frame)
    if _is_deflated(meta):
        limit = _bytes_of(header, min(rows * columns * frames, max_pixels))
        dataset = _parse(_inflate(path, meta, limit, whole=True))
    else:
        dataset = _parse(path, defer_size=LARGE_TAG)
        _check_length(dataset, path, _bytes_of(header, rows * columns * frames))
    _, _, frames = _check_size(dataset, max_pixels, frame)  # tags may stand twice, or behind the pixels
    _check(dataset)
    index = (frames - 1) // 2 if frame == "middle" else 0
    _check_stream(dataset, frames, index)
    return dataset, index


def read_header(path: Path) -> Dataset:
    """Read the tags before the pixels, none of them above 1 MB.

    Raises:
        DataError: the file is damaged.
        OSError: the file cannot be read.
    """
    meta = _meta(path)
    if _is_deflated(meta):
        return _parse(_inflate(path, meta, HEADER_BYTES, whole=False), stop_before_pixels=True)
    return _parse(path, stop_before_pixels=True, defer_size=LARGE_TAG)


def text_of(dataset: Dataset, name: str) -> str:
    """Return a tag as text, empty if it is absent, damaged or holds several values."""
    try:
        value = dataset.get(name)
        text = "" if value is None else str(value)[:LONGEST_TEXT]
        return " ".join(text.replace("\\", " ").replace("\0", "").split())
    except Exception:  # tags are converted when they are first read
        return ""


def _parse(source: Path | io.BytesIO, **options: Any) -> Dataset:
    try:
        dataset = pydicom.dcmread(source, force=True, **options)
    except Exception as error:  # pydicom has exceptions of its own, and lets those of struct and codecs through
        if isinstance(error, OSError) and error.errno is not None:  # the disk's, not pydicom's
            raise
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


def _check_size(header: Dataset, max_pixels: int, frame: str | None) -> tuple[int, int, int]:
    """Refuse what is too large, or several frames of which none is chosen; return rows, columns and frames."""
    try:
        rows, columns = int(header.get("Rows") or 0), int(header.get("Columns") or 0)
        frames = int(header.get("NumberOfFrames") or 1)
    except Exception as error:
        raise DataError("is a damaged DICOM file: its image tags cannot be read") from error
    if rows * columns > max_pixels:
        raise DataError(f"has {columns} × {rows} pixels, more than the {max_pixels:,} that are allowed")
    if frames > 1 and frame is None:
        raise DataError(
            f"is a DICOM file with {frames} frames; one picture is needed: export the frame you want, or choose it: "
            "--data.frame first (or middle)"
        )
    return rows, columns, max(1, frames)


def _check_length(dataset: Dataset, path: Path, limit: int) -> None:
    """Refuse pixels that are still on disk and take far more than their picture needs: they are read as a whole."""
    for name in PICTURES:
        element = dataset.get_item(name, keep_deferred=True) if name in dataset else None
        if isinstance(element, RawDataElement) and element.value is None:
            length = element.length if element.length != UNDEFINED else path.stat().st_size - element.value_tell
            if length > limit:
                raise DataError("is a DICOM file that holds far more than its picture, which is refused")


def _check(dataset: Dataset) -> None:
    try:
        if not any(dataset.get(name) for name in PICTURES):
            raise DataError("is a DICOM file without a picture (no pixel data)")
        missing = [name for name in NEEDED if dataset.get(name) in (None, "")]
        numbers = [int(dataset.get(name) or 0) for name in ("SamplesPerPixel", "BitsAllocated")]
    except DataError:
        raise
    except Exception as error:
        raise DataError("is a damaged DICOM file: its image tags cannot be read") from error
    if missing or not all(numbers):
        missing = missing or ["positive SamplesPerPixel and BitsAllocated"]
        raise DataError(f"is a DICOM file that lacks {', '.join(missing)}")


def _check_stream(dataset: Dataset, frames: int, index: int) -> None:
    """Refuse a compressed picture that says another size than its file: a decoder would make room for it first."""
    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax not in SAY_THEIR_SIZE:
        return
    offsets = dataset.get("ExtendedOffsetTable"), dataset.get("ExtendedOffsetTableLengths")
    try:
        # Together as pydicom puts the fragments together: the first alone may be shorter than a header.
        stream = get_frame(
            dataset.PixelData, index, number_of_frames=frames, extended_offsets=offsets if all(offsets) else None
        )
        found = stream_size(stream)
    except Exception:  # of pydicom's, struct's and others
        found = None
    if found is None:
        raise DataError(
            f"is a DICOM file whose pixels cannot be decoded ({syntax.name}): the compressed picture does not say how "
            "large it is"
        )
    if found != (int(dataset.Columns), int(dataset.Rows)):
        raise DataError(
            f"is a damaged DICOM file: its tags say {dataset.Columns} × {dataset.Rows} pixels and its compressed "
            f"picture {found[0]} × {found[1]}"
        )


def stream_size(stream: bytes) -> tuple[int, int] | None:
    """Return width and height as the header of a JPEG, JPEG-LS or JPEG 2000 stream says them; None: it does not."""
    if stream[:2] == b"\xff\xd8":
        return _jpeg_size(stream)
    start = _codestream(stream) if stream.startswith(JP2) else 0
    if stream[start : start + 4] != b"\xff\x4f\xff\x51" or len(stream) < start + 24:  # SOC and SIZ (A.5.1)
        return None
    right, bottom, left, top = struct.unpack(">4I", stream[start + 8 : start + 24])
    return right - left, bottom - top


def _jpeg_size(stream: bytes) -> tuple[int, int] | None:
    """Walk over the segments to the start of frame (ITU-T T.81 B.2.2; T.87 C.2.2 for JPEG-LS)."""
    position = 2
    while True:
        position = stream.find(b"\xff", position)  # decoders skip what stands between segments
        if position < 0 or position + 9 > len(stream):
            return None
        marker = stream[position + 1]
        if marker == 0xFF:  # fill byte
            position += 1
        elif marker in (0x00, 0x01, *range(0xD0, 0xD8)):  # without a length
            position += 2
        elif marker in (0xD8, 0xD9, 0xDA):  # a picture ends or begins before its size is known
            return None
        elif marker in (*range(0xC0, 0xC4), *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0), 0xF7):
            height, width = struct.unpack(">HH", stream[position + 5 : position + 9])
            return (width, height) if height else None  # 0: it follows behind the first scan
        else:
            position += 2 + struct.unpack(">H", stream[position + 2 : position + 4])[0]


def _codestream(stream: bytes) -> int:
    """Return where a JPEG 2000 stream begins within the boxes of a JP2 file (ISO 15444-1 I.4)."""
    position = 0
    while position + 16 <= len(stream):
        length, kind, extended = struct.unpack(">I4sQ", stream[position : position + 16])
        start = position + (16 if length == 1 else 8)
        if kind == b"jp2c":
            return start
        position = max(start, position + (extended if length == 1 else length))
    return len(stream)


def _meta(path: Path) -> FileMetaDataset | Dataset:
    try:
        return read_file_meta_info(path)
    except (
        Exception
    ) as error:  # without preamble or with damaged meta information, nothing says that a file is deflated
        if isinstance(error, OSError) and error.errno is not None:
            raise
        return Dataset()


def _is_deflated(meta: Dataset) -> bool:
    return meta.get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian


def _bytes_of(header: Dataset, pixels: int) -> int:
    """Return how many bytes a data set of so many pixels may have."""
    try:
        bits = min(64, max(8, int(header.get("BitsAllocated") or 0)))
        samples = min(4, max(1, int(header.get("SamplesPerPixel") or 1)))
        return max(0, pixels) * samples * bits // 8 + OTHER_TAGS_BYTES  # numbers of some types may be negative
    except Exception as error:
        raise DataError("is a damaged DICOM file: its image tags cannot be read") from error


def _inflate(path: Path, meta: Dataset, limit: int, *, whole: bool) -> io.BytesIO:
    """Unpack a deflated data set (PS3.5 A.5) into a plain one; pydicom itself would unpack any amount."""
    try:
        start = len(PREAMBLE) + GROUP_LENGTH_BYTES + int(meta.FileMetaInformationGroupLength)
        with path.open("rb") as file:
            file.seek(start)
            unpacker = zlib.decompressobj(-zlib.MAX_WBITS)
            plain = unpacker.decompress(file.read(limit), limit)  # deflated data are never much longer than plain
    except (AttributeError, TypeError, ValueError, zlib.error) as error:
        raise DataError("is a damaged DICOM file: its tags cannot be read") from error
    if whole and unpacker.unconsumed_tail:
        raise DataError("is a deflated DICOM file that holds far more than its picture, which is refused")
    return io.BytesIO(PREAMBLE + plain)


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
