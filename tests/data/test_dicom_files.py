"""DICOM files are looked at header first: what is too large, or lies about its size, is refused in little memory."""

import io
import struct
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path

import imagecodecs
import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate, encapsulate_extended, generate_frames
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
    generate_uid,
)

from medxfer.data.dicom import Radiograph, read_dicom
from medxfer.data.dicom_files import is_dicom, read_dataset, read_header, stream_size, text_of, write_dicom
from medxfer.errors import DataError

MAX_PIXELS = 10**6
CANARY = "CANARY^PATIENT"
GIGABYTE = 2**30


def random_film(seed: int = 0, top: int = 4096, dtype: str = "uint16", bottom: int = 0) -> np.ndarray:
    """Return a picture of 48 × 40 random numbers."""
    return np.random.default_rng(seed).integers(bottom, top, (48, 40)).astype(dtype)


def dataset_of(pixels: np.ndarray, **tags: object) -> Dataset:
    """Build a secondary capture of these pixels; tags add to or replace what is usual, None deletes."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = generate_uid()
    dataset.PatientName = dataset.PatientID = CANARY
    dataset.Rows, dataset.Columns = pixels.shape[:2]
    dataset.SamplesPerPixel = pixels.shape[2] if pixels.ndim == 3 else 1
    dataset.PhotometricInterpretation = "RGB" if pixels.ndim == 3 else "MONOCHROME2"
    if pixels.ndim == 3:
        dataset.PlanarConfiguration = 0
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    dataset.BitsAllocated = bits = pixels.dtype.itemsize * 8
    dataset.BitsStored = int(tags.get("BitsStored", bits))  # type: ignore[call-overload]
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelData = pixels.tobytes()
    for name, value in tags.items():
        if value is None:
            del dataset[name]
        else:
            setattr(dataset, name, value)
    return dataset


def compressed(pixels: np.ndarray, syntax: UID, *streams: bytes, **tags: object) -> Dataset:
    """Build a secondary capture whose pixels are these streams, one per frame."""
    dataset = dataset_of(pixels, **tags)
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.PixelData = encapsulate(list(streams))
    dataset["PixelData"].VR = "OB"
    return dataset


def saved(path: Path, dataset: Dataset) -> Path:
    """Write a data set with preamble and meta information."""
    dataset.save_as(path, enforce_file_format=True)
    return path


def _read(path: Path, frame: str | None = None) -> Radiograph:
    return read_dicom(path, max_pixels=MAX_PIXELS, frame=frame)


def refusal(path: Path, frame: str | None = None) -> str:
    """Return the one line that says why a file is refused, after little memory was used."""
    tracemalloc.start()
    try:
        with pytest.raises(DataError) as caught:
            _read(path, frame)
        assert tracemalloc.get_traced_memory()[1] < 50 * 2**20
    finally:
        tracemalloc.stop()
    text = str(caught.value)
    assert "\n" not in text
    assert CANARY not in text
    return text


# Which files are DICOM, and what their tags say


@pytest.mark.parametrize(
    "header",
    [b"", b"\x08\x00", b"\x89PNG\r\n\x1a\n" + bytes(200), b"\xff\xd8\xff\xe0" + bytes(200), b"II*\0" + bytes(200),
     b"BM" + bytes(200), b"RIFF\x10\0\0\0WEBP" + bytes(200), b"path,label\na.png,benign\n", bytes(300)],
)  # fmt: skip
def test_other_files_are_not_taken_for_dicom(header):
    assert not is_dicom(header)


def test_the_preamble_may_hold_anything():
    assert is_dicom(b"II*\0" + bytes(124) + b"DICM")


@pytest.mark.parametrize("implicit", [True, False])
def test_a_file_without_preamble_is_dicom_too(tmp_path, implicit):
    dataset = dataset_of(random_film())
    del dataset.file_meta
    dataset.save_as(tmp_path / "bare", implicit_vr=implicit, little_endian=True)
    assert is_dicom((tmp_path / "bare").read_bytes()[:200])


def test_the_header_holds_the_tags_and_not_the_pixels(tmp_path):
    header = read_header(saved(tmp_path / "a.dcm", dataset_of(random_film(), Modality="DX", ViewPosition="PA")))
    assert (header.Rows, header.Columns, header.Modality, header.ViewPosition) == (48, 40, "DX", "PA")
    assert "PixelData" not in header


@pytest.mark.parametrize(
    ("value", "text"),
    [("PA", "PA"), (None, ""), ("", ""), ("P A ", "P A"), (["LL", "RL"], "['LL', 'RL']"), ("two\nlines", "two lines")],
)
def test_a_tag_as_text(value, text):
    dataset = Dataset()
    if value is not None:
        dataset.SeriesDescription = value
    assert text_of(dataset, "SeriesDescription") == text


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("window", [None, (2000.0, 1000.0)])
def test_a_written_file_says_what_was_asked(tmp_path, photometric, window):
    write_dicom(tmp_path / "a.dcm", random_film(), patient_id="P7", photometric=photometric, window=window)
    dataset = pydicom.dcmread(tmp_path / "a.dcm")
    np.testing.assert_array_equal(dataset.pixel_array, random_film())
    assert (dataset.PatientID, dataset.Modality, dataset.BitsStored) == ("P7", "CR", 12)
    assert dataset.PhotometricInterpretation == photometric
    assert dataset.file_meta.MediaStorageSOPClassUID == UID("1.2.840.10008.5.1.4.1.1.1")
    assert ((dataset.WindowCenter, dataset.WindowWidth) if "WindowCenter" in dataset else None) == window
    (tmp_path / "again").mkdir()
    write_dicom(tmp_path / "again" / "a.dcm", random_film(), patient_id="P7", photometric=photometric, window=window)
    assert (tmp_path / "again" / "a.dcm").read_bytes() == (tmp_path / "a.dcm").read_bytes()


# Files by hand, element by element


def _meta(path: Path, syntax: UID) -> bytes:
    """Return the preamble and meta information that pydicom writes."""
    dataset = dataset_of(random_film())
    dataset.file_meta.TransferSyntaxUID = syntax
    content = saved(path, dataset).read_bytes()
    return content[: 144 + struct.unpack("<I", content[140:144])[0]]


def _element(group: int, element: int, vr: bytes, value: bytes, length: int | None = None) -> bytes:
    length = len(value) if length is None else length
    kind = vr + struct.pack("<2xI", length) if vr in (b"OB", b"OW", b"SQ") else vr + struct.pack("<H", length)
    return struct.pack("<HH", group, element) + kind + value


def _number(element: int, value: int, vr: bytes = b"US") -> bytes:
    return _element(0x28, element, vr, struct.pack("<H" if vr == b"US" else "<h", value))


def _image_tags(rows: int, columns: int, frames: int = 1, samples: int = 1, bits: int = 8) -> bytes:
    count = str(frames).encode()
    return b"".join([
        _number(2, samples), _element(0x28, 4, b"CS", b"MONOCHROME2 "), _element(0x28, 8, b"IS", count.ljust(10)),
        _number(0x10, rows), _number(0x11, columns), _number(0x100, bits), _number(0x101, bits),
        _number(0x102, bits - 1), _number(0x103, 0),
    ])  # fmt: skip


def _pixels(value: bytes, length: int | None = None) -> bytes:
    return _element(0x7FE0, 0x10, b"OB", value, length)


TINY = bytes(range(100))
PRIVATE = _element(9, 0x10, b"LO", b"ME")


def _plain(path: Path, *parts: bytes | int) -> Path:
    """Write a plain file; a number stands for so many zeros, which take no room on disk."""
    meta = _meta(path, ExplicitVRLittleEndian)
    with path.open("wb") as file:
        file.write(meta)
        for part in parts:
            file.truncate(file.seek(part, io.SEEK_CUR)) if isinstance(part, int) else file.write(part)
    return path


def _deflated(path: Path, *parts: bytes | int) -> Path:
    """Write a deflated file; a number stands for so many megabytes of zeros."""
    meta, packer = _meta(path, DeflatedExplicitVRLittleEndian), zlib.compressobj(1, wbits=-zlib.MAX_WBITS)
    with path.open("wb") as file:
        file.write(meta)
        for part in parts:
            for piece in [bytes(2**20)] * part if isinstance(part, int) else [part]:
                file.write(packer.compress(piece))
        file.write(packer.flush())
    return path


# What is too large


@pytest.mark.parametrize("frame", [None, "middle"])
def test_a_picture_that_is_too_large_is_refused_by_its_header(tmp_path, frame):
    path = _plain(tmp_path / "a.dcm", _image_tags(60000, 60000), _pixels(b"", 3_600_000_000), 3_600_000_000)
    assert path.stat().st_size > 3 * GIGABYTE
    assert refusal(path, frame) == "has 60000 × 60000 pixels, more than the 1,000,000 that are allowed"


def test_a_picture_as_large_as_allowed_is_read(tmp_path):
    path = saved(tmp_path / "a.dcm", dataset_of(random_film()))
    assert read_dicom(path, max_pixels=48 * 40, frame=None).pixels.shape == (48, 40, 1)
    with pytest.raises(DataError, match="has 40 × 48 pixels, more than the 1,919 that are allowed"):
        read_dicom(path, max_pixels=48 * 40 - 1, frame=None)


@pytest.mark.parametrize("write", [_plain, _deflated])
def test_tags_that_stand_behind_the_pixels_count_too(tmp_path, write: Callable[..., Path]):
    later = _number(0x10, 60000) + _number(0x11, 60000)
    path = write(tmp_path / "a.dcm", _image_tags(10, 10), _pixels(TINY), later)
    assert "has 60000 × 60000 pixels" in refusal(path)


def test_run_lengths_take_no_memory_for_tags_that_stand_behind_them(tmp_path):
    dataset = dataset_of(random_film())
    dataset.compress(RLELossless)
    path = saved(tmp_path / "a.dcm", dataset)
    with path.open("ab") as file:
        file.write(_number(0x10, 30000) + _number(0x11, 30000))
    assert "has 30000 × 30000 pixels" in refusal(path)


def test_pixels_that_take_far_more_than_their_picture_are_not_read(tmp_path):
    path = _plain(tmp_path / "a.dcm", _image_tags(10, 10), _pixels(b"", GIGABYTE), GIGABYTE)
    assert refusal(path) == "is a DICOM file that holds far more than its picture, which is refused"


def test_compressed_pixels_that_take_far_more_than_their_picture_are_not_read(tmp_path):
    path = saved(tmp_path / "a.dcm", compressed(random_film(), JPEG2000Lossless, _j2k(random_film()), BitsStored=12))
    content = path.read_bytes()
    assert content.endswith(b"\xfe\xff\xdd\xe0\0\0\0\0")
    with path.open("r+b") as file:
        file.seek(len(content) - 8)
        file.write(b"\xfe\xff\x00\xe0" + struct.pack("<I", 10**8))
        file.truncate(file.seek(10**8, io.SEEK_CUR))
        file.seek(0, io.SEEK_END)
        file.write(b"\xfe\xff\xdd\xe0\0\0\0\0")
    assert refusal(path) == "is a DICOM file that holds far more than its picture, which is refused"


def test_a_large_private_tag_stays_on_disk(tmp_path):
    path = _plain(tmp_path / "a.dcm", PRIVATE, _element(9, 0x1001, b"OB", b"", GIGABYTE), GIGABYTE,
                  _image_tags(10, 10), _pixels(TINY))  # fmt: skip
    small = _plain(tmp_path / "b.dcm", _image_tags(10, 10), _pixels(TINY))
    tracemalloc.start()
    try:
        found = _read(path).pixels
        assert tracemalloc.get_traced_memory()[1] < 50 * 2**20
    finally:
        tracemalloc.stop()
    np.testing.assert_array_equal(found, _read(small).pixels)


def test_a_picture_of_many_megabytes_is_read(tmp_path):
    """Its pixels are left on disk until the rest is known."""
    large = np.random.default_rng(0).integers(0, 4096, (1000, 1000)).astype(np.uint16)
    dataset = dataset_of(large, BitsStored=12)
    small = np.asarray(_read(saved(tmp_path / "a.dcm", dataset)).pixels[..., 0], dtype=float)
    assert abs(np.corrcoef(small.ravel(), large.ravel())[0, 1]) > 0.999
    dataset.compress(RLELossless)
    np.testing.assert_array_equal(_read(saved(tmp_path / "b.dcm", dataset)).pixels[..., 0], small)


# Deflated files


def test_a_deflated_file_gives_the_picture_of_a_plain_one(tmp_path):
    parts = [_image_tags(10, 10), _pixels(TINY)]
    expected = _read(_plain(tmp_path / "a.dcm", *parts))
    found = _read(_deflated(tmp_path / "b.dcm", *parts))
    np.testing.assert_array_equal(found.pixels, expected.pixels)
    assert found.mode == expected.mode == "MONOCHROME2 8"


def test_a_deflated_file_may_hold_much_before_and_behind_its_picture(tmp_path):
    before = [PRIVATE, _element(9, 0x1001, b"OB", b"", 3 * 2**20), 3]
    path = _deflated(tmp_path / "a.dcm", *before, _image_tags(10, 10), _pixels(TINY))
    np.testing.assert_array_equal(
        _read(path).pixels, _read(_deflated(tmp_path / "b.dcm", _image_tags(10, 10), _pixels(TINY))).pixels
    )


FAR_MORE = "is a deflated DICOM file that holds far more than its picture, which is refused"


INFLATED = 200 * 2**20


@pytest.mark.parametrize(
    ("parts", "frame", "reason"),
    [
        ([_image_tags(60000, 60000), _pixels(b"", INFLATED)], None, "has 60000 × 60000 pixels"),
        ([_image_tags(10, 10), _pixels(b"", INFLATED)], None, FAR_MORE),
        ([_image_tags(10, 10), _pixels(TINY), _element(0xFFFC, 0xFFFC, b"OB", b"", INFLATED)], None, FAR_MORE),
        ([PRIVATE, _element(9, 0x1001, b"OB", b"", INFLATED)], None, FAR_MORE),
        ([_image_tags(10, 10, frames=10**7), _pixels(b"", INFLATED)], None, "is a DICOM file with 10000000 frames"),
        ([_image_tags(10, 10, frames=10**7), _pixels(b"", INFLATED)], "first", FAR_MORE),
        ([_image_tags(99, 99, samples=65535, bits=65535), _pixels(b"", INFLATED)], None, FAR_MORE),
        # Negative numbers that make the limit zero, which zlib takes for none:
        ([_number(2, 1), _number(0x10, -4096, b"SS"), _number(0x11, 4096), _pixels(b"", INFLATED)], None, FAR_MORE),
    ],
    ids=["size", "pixels", "tail", "private tag", "frames", "first frame", "samples", "negative"],
)
def test_a_small_file_that_inflates_to_far_more_is_refused(tmp_path, parts, frame, reason):
    path = _deflated(tmp_path / "a.dcm", *parts, 200)
    assert path.stat().st_size < 2 * 2**20 < INFLATED
    assert refusal(path, frame).startswith(reason)


@pytest.mark.parametrize("content", [b"", b"\xff" * 100], ids=["nothing", "no deflated data"])
def test_a_damaged_deflated_file_is_refused(tmp_path, content):
    path = tmp_path / "a.dcm"
    path.write_bytes(_meta(path, DeflatedExplicitVRLittleEndian) + content)
    assert "DICOM file" in refusal(path)


def test_a_large_deflated_file_of_nothing_takes_no_memory(tmp_path):
    path = tmp_path / "a.dcm"
    path.write_bytes(_meta(path, DeflatedExplicitVRLittleEndian))
    with path.open("r+b") as file:
        file.truncate(GIGABYTE)
    assert "DICOM file" in refusal(path)


@pytest.mark.parametrize("part", [0.3, 0.6, 0.9])
def test_a_truncated_deflated_file_is_refused(tmp_path, part):
    path = _deflated(tmp_path / "a.dcm", _image_tags(48, 40), _pixels(random_film(top=256, dtype="uint8").tobytes()))
    content, start = path.read_bytes(), len(_meta(tmp_path / "b.dcm", DeflatedExplicitVRLittleEndian))
    path.write_bytes(content[: start + int(part * (len(content) - start))])
    assert "DICOM file" in refusal(path)


# Compressed pictures that say their own size


def _jpeg(pixels: np.ndarray, **options: object) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", **options)
    return file.getvalue()


def _j2k(pixels: np.ndarray, codecformat: str = "j2k") -> bytes:
    return bytes(imagecodecs.jpeg2k_encode(pixels, codecformat=codecformat, reversible=True))


GREY = random_film(top=256, dtype="uint8")
JPEG, JPEG_LS, J2K, JP2 = _jpeg(GREY), bytes(imagecodecs.jpegls_encode(GREY)), _j2k(GREY), _j2k(GREY, "jp2")
LOSSLESS = bytes(imagecodecs.ljpeg_encode(GREY))


def _claiming(stream: bytes, width: int, height: int) -> bytes:
    """Change the size that a stream says, and nothing else."""
    if (start := stream.find(b"\xff\x4f\xff\x51")) >= 0:  # SIZ: size, offset, and the size of tiles
        size = struct.pack(">2I", width, height)
        return stream[: start + 8] + size + stream[start + 16 : start + 24] + size + stream[start + 32 :]
    frame = struct.pack(">HBHH", 11, 8, 48, 40)
    start = max(stream.find(marker + frame) for marker in (b"\xff\xc0", b"\xff\xc2", b"\xff\xc3", b"\xff\xf7"))
    assert start > 0
    return stream[: start + 5] + struct.pack(">HH", height, width) + stream[start + 9 :]


def _segments(count: int) -> bytes:
    """Return application segments of 60,000 bytes each that hold a small picture."""
    return count * (b"\xff\xe5" + struct.pack(">H", 60002) + JPEG.ljust(60000, b"\0"))


STREAMS = {
    "JPEG": (JPEGBaseline8Bit, JPEG), "progressive JPEG": (JPEGBaseline8Bit, _jpeg(GREY, progressive=True)),
    "lossless JPEG": (JPEGLosslessSV1, LOSSLESS), "JPEG-LS": (JPEGLSLossless, JPEG_LS),
    "JPEG 2000": (JPEG2000Lossless, J2K), "JP2": (JPEG2000Lossless, JP2), "HTJ2K": (HTJ2KLossless, J2K),
}  # fmt: skip


@pytest.mark.parametrize(("height", "width"), [(48, 40), (1, 300), (257, 2)])
def test_the_size_of_a_stream_is_the_size_of_what_was_encoded(height, width):
    pixels = np.zeros((height, width), dtype=np.uint8)
    colours = np.zeros((height, width, 3), dtype=np.uint8)
    streams = [
        *(_jpeg(picture, progressive=progressive) for picture in (pixels, colours) for progressive in (False, True)),
        *(_j2k(picture, form) for picture in (pixels, colours) for form in ("j2k", "jp2")),
        bytes(imagecodecs.jpegls_encode(pixels)), bytes(imagecodecs.ljpeg_encode(pixels)),
    ]  # fmt: skip
    assert {stream_size(stream) for stream in streams} == {(width, height)}


def test_the_size_of_a_stream_by_the_encoders_of_pydicom():
    for syntax in (JPEG2000Lossless, JPEGLSLossless):
        dataset = dataset_of(random_film())
        dataset.compress(syntax)
        assert stream_size(next(generate_frames(dataset.PixelData, number_of_frames=1))) == (40, 48)


@pytest.mark.parametrize("stream", [b"", b"\xff\xd8", JPEG[:30], J2K[:20], JP2[:40], b"\xff\xd8" + bytes(1000), TINY])
def test_a_stream_that_does_not_say_its_size(stream):
    assert stream_size(stream) is None


@pytest.mark.parametrize("name", STREAMS)
def test_an_honest_stream_is_read(tmp_path, name):
    syntax, stream = STREAMS[name]
    assert _read(saved(tmp_path / "a.dcm", compressed(GREY, syntax, stream))).pixels.shape == (48, 40, 1)


@pytest.mark.parametrize("fragments", [1, 9])
@pytest.mark.parametrize("table", [True, False])
@pytest.mark.parametrize("name", STREAMS)
def test_a_stream_of_another_size_than_the_tags_say_is_refused_before_it_is_decoded(tmp_path, name, table, fragments):
    syntax, stream = STREAMS[name]
    dataset = compressed(GREY, syntax, stream)
    lie = _claiming(stream, 9000, 8000)
    dataset.PixelData = encapsulate([lie], has_bot=table, fragments_per_frame=fragments)
    assert refusal(saved(tmp_path / "a.dcm", dataset)) == (
        "is a damaged DICOM file: its tags say 40 × 48 pixels and its compressed picture 9000 × 8000"
    )


LIES = {
    "behind two large segments": (JPEGBaseline8Bit, JPEG[:2] + _segments(2) + _claiming(JPEG, 9000, 8000)[2:]),
    "behind fill bytes": (JPEGBaseline8Bit, JPEG[:2] + 50 * b"\xff" + _claiming(JPEG, 9000, 8000)[2:]),
    "behind what is no segment": (JPEGLosslessSV1, JPEG[:2] + b"\0\7" + _claiming(LOSSLESS, 9000, 8000)[2:]),
    "behind a marker without a length": (
        JPEGLosslessSV1, JPEG[:2] + b"\xff\xd0" + _claiming(LOSSLESS, 9000, 8000)[2:]
    ),
    "behind a box with an honest stream": (
        JPEG2000Lossless,
        JP2[: JP2.index(b"jp2c") - 4] + struct.pack(">I4s", 8 + len(J2K), b"free") + J2K
        + struct.pack(">I4s", 0, b"jp2c") + _claiming(J2K, 9000, 8000),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LIES)
def test_a_size_is_found_where_a_decoder_finds_it(tmp_path, name):
    syntax, stream = LIES[name]
    assert stream_size(stream) == (9000, 8000)
    assert "its compressed picture 9000 × 8000" in refusal(saved(tmp_path / "a.dcm", compressed(GREY, syntax, stream)))


def test_the_stream_that_is_checked_is_the_one_that_is_decoded(tmp_path):
    """An extended table of offsets goes before the basic one."""
    lie, dataset = _claiming(JPEG, 9000, 8000), compressed(GREY, JPEGBaseline8Bit, JPEG)
    encoded, offsets, lengths = encapsulate_extended([JPEG, lie])
    second = struct.unpack("<2Q", offsets)[1], struct.unpack("<2Q", lengths)[1]
    dataset.PixelData = encoded
    dataset.ExtendedOffsetTable, dataset.ExtendedOffsetTableLengths = (struct.pack("<Q", number) for number in second)
    assert "its compressed picture 9000 × 8000" in refusal(saved(tmp_path / "a.dcm", dataset))


@pytest.mark.parametrize("name", STREAMS)
def test_a_stream_that_does_not_say_its_size_is_refused_with_its_syntax(tmp_path, name):
    syntax, _ = STREAMS[name]
    text = refusal(saved(tmp_path / "a.dcm", compressed(GREY, syntax, TINY)))
    assert text == (
        f"is a DICOM file whose pixels cannot be decoded ({syntax.name}): the compressed picture does not say how "
        "large it is"
    )


# Several frames


def _frames(syntax: UID, count: int) -> tuple[np.ndarray, Dataset]:
    """Return frames of different pictures, and a data set that holds them."""
    frames = np.stack([random_film(seed=seed, top=256, dtype="uint8") for seed in range(count)])
    dataset = dataset_of(frames[0], NumberOfFrames=count, PixelData=frames.tobytes())
    if syntax == DeflatedExplicitVRLittleEndian:
        dataset.file_meta.TransferSyntaxUID = syntax
    elif syntax.is_compressed:
        dataset.compress(syntax)
    return frames, dataset


FRAME_SYNTAXES = [ExplicitVRLittleEndian, DeflatedExplicitVRLittleEndian, RLELossless, JPEG2000Lossless, JPEGLSLossless]


@pytest.mark.parametrize("count", [1, 2, 3, 6])
@pytest.mark.parametrize("syntax", FRAME_SYNTAXES, ids=lambda uid: uid.name)
def test_the_first_or_the_middle_of_several_frames_is_read(tmp_path, syntax, count):
    frames, dataset = _frames(syntax, count)
    path = saved(tmp_path / "a.dcm", dataset)
    for frame, index in (("first", 0), ("middle", (count - 1) // 2)):
        alone = saved(tmp_path / "alone.dcm", dataset_of(frames[index]))
        np.testing.assert_array_equal(_read(path, frame).pixels, _read(alone).pixels)
        assert read_dataset(path, max_pixels=MAX_PIXELS, frame=frame)[1] == index


@pytest.mark.parametrize("syntax", FRAME_SYNTAXES, ids=lambda uid: uid.name)
def test_several_frames_are_refused_unless_one_is_chosen(tmp_path, syntax):
    _, dataset = _frames(syntax, 3)
    assert refusal(saved(tmp_path / "a.dcm", dataset)) == (
        "is a DICOM file with 3 frames; one picture is needed: export the frame you want, or choose it: "
        "--data.frame first (or middle)"
    )


def test_a_chosen_frame_of_another_size_is_refused(tmp_path):
    dataset = compressed(GREY, JPEGBaseline8Bit, JPEG, _claiming(JPEG, 9000, 8000), JPEG, NumberOfFrames=3)
    path = saved(tmp_path / "a.dcm", dataset)
    assert _read(path, "first").pixels.shape == (48, 40, 1)
    assert "its compressed picture 9000 × 8000" in refusal(path, "middle")


@pytest.mark.parametrize("frames", ["many", "-3", "1e3"])
def test_a_number_of_frames_that_is_none_is_refused(tmp_path, frames):
    tags = _image_tags(10, 10).replace(b"1".ljust(10), frames.encode().ljust(10))
    assert "DICOM file" in refusal(_plain(tmp_path / "a.dcm", tags, _pixels(TINY)))


def test_no_frames_are_one(tmp_path):
    tags = _image_tags(10, 10, frames=0)
    assert _read(_plain(tmp_path / "a.dcm", tags, _pixels(TINY))).pixels.shape == (10, 10, 1)
