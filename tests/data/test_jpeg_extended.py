"""JPEG Extended of 12 bits inside DICOM, against the film that was encoded and lossless twins of a real one."""

import io
import os
import struct
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
from PIL import Image
from pydicom.uid import JPEGExtended12Bit

from medxfer.data import jpeg_extended
from medxfer.data.dicom import read_dicom
from medxfer.errors import DataError
from tests.data.test_dicom_files import compressed, dataset_of, saved

MAX_PIXELS = 10**7
IDENTITY = {"WindowCenter": 2047.5, "WindowWidth": 4095, "VOILUTFunction": "LINEAR_EXACT"}


def _film(height: int = 120, width: int = 90) -> np.ndarray:
    """Return a smooth picture that needs 12 bits."""
    y, x = np.mgrid[0:height, 0:width]
    return (2047 + 1000 * np.sin(x / 17) + 1000 * np.cos(y / 23)).astype(np.uint16)


def _encoded(film: np.ndarray, level: int = 95) -> bytes:
    stream = bytes(imagecodecs.jpeg8_encode(film, level=level, bitspersample=12))
    assert b"\xff\xc1" + struct.pack(">HB", 11, 12) in stream  # extended sequential, 12 bits
    return stream


def _read(path: Path) -> np.ndarray:
    return read_dicom(path, max_pixels=MAX_PIXELS, frame=None).pixels


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_twelve_bits_are_as_they_were_encoded(tmp_path, photometric):
    film = _film()
    dataset = compressed(film, JPEGExtended12Bit, _encoded(film), BitsStored=12, **IDENTITY)
    dataset.PhotometricInterpretation = photometric
    found = _read(saved(tmp_path / "a.dcm", dataset))[..., 0]
    expected = film / 4095 * 255
    np.testing.assert_allclose(found, expected if photometric == "MONOCHROME2" else 255 - expected, atol=1)


@pytest.mark.parametrize("shape", [(1, 1), (7, 13), (64, 8)])
def test_sides_that_are_no_multiple_of_a_block(tmp_path, shape):
    film = np.full(shape, 3000, dtype=np.uint16)
    path = saved(tmp_path / "a.dcm", compressed(film, JPEGExtended12Bit, _encoded(film), BitsStored=12, **IDENTITY))
    np.testing.assert_allclose(_read(path)[..., 0], np.full(shape, 3000 / 4095 * 255), atol=1)


def test_the_middle_of_several_frames(tmp_path):
    films = [np.full((16, 16), value, dtype=np.uint16) for value in (500, 1500, 3500)]
    dataset = compressed(
        films[0], JPEGExtended12Bit, *map(_encoded, films), BitsStored=12, NumberOfFrames=3, **IDENTITY
    )
    found = read_dicom(saved(tmp_path / "a.dcm", dataset), max_pixels=MAX_PIXELS, frame="middle").pixels
    np.testing.assert_allclose(found[..., 0], np.full((16, 16), 1500 / 4095 * 255), atol=1)


@pytest.mark.parametrize("bits", [8, 16])
def test_eight_bits_in_this_syntax_are_as_pillow_decodes_them(tmp_path, bits):
    film = (_film() // 16).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(film).save(file, "JPEG", quality=95)
    stored = film.astype(f"uint{bits}")
    tags = {"WindowCenter": 127.5, "WindowWidth": 255, "VOILUTFunction": "LINEAR_EXACT"}
    dataset = compressed(stored, JPEGExtended12Bit, file.getvalue(), **{**tags, "BitsStored": 8})
    found = _read(saved(tmp_path / "a.dcm", dataset))[..., 0]
    np.testing.assert_allclose(found, np.asarray(Image.open(file)), atol=1)


@pytest.mark.parametrize("part", [0.2, 0.5, 0.9, 0.999])
def test_a_truncated_stream_is_refused_and_not_filled_with_grey(tmp_path, part):
    film = _film()
    stream = _encoded(film)
    dataset = compressed(film, JPEGExtended12Bit, stream[: int(part * len(stream))], BitsStored=12)
    with pytest.raises(DataError, match=r"cannot be decoded \(JPEG Extended.*(end is missing|how large it is)"):
        _read(saved(tmp_path / "a.dcm", dataset))


def test_padding_behind_the_picture_is_allowed(tmp_path):
    film = _film()
    dataset = compressed(film, JPEGExtended12Bit, _encoded(film) + b"\0", BitsStored=12, **IDENTITY)
    np.testing.assert_allclose(_read(saved(tmp_path / "a.dcm", dataset))[..., 0], film / 4095 * 255, atol=1)


@pytest.mark.parametrize("marker", [b"\xff\xc4", b"\xff\xdb"], ids=["Huffman table", "quantization table"])
def test_a_damaged_table_is_refused_in_one_line(tmp_path, marker):
    film = _film()
    stream = bytearray(_encoded(film))
    start = stream.index(marker)
    stream[start + 4 : start + 24] = b"\xee" * 20
    with pytest.raises(DataError, match="cannot be decoded") as caught:
        _read(saved(tmp_path / "a.dcm", compressed(film, JPEGExtended12Bit, bytes(stream), BitsStored=12)))
    assert "\n" not in str(caught.value)


def test_colours_are_refused(tmp_path):
    film = _film()
    stream = bytes(imagecodecs.jpeg8_encode(np.stack(3 * [film], axis=-1), bitspersample=12))
    with pytest.raises(DataError, match="cannot be decoded"):
        _read(saved(tmp_path / "a.dcm", compressed(film, JPEGExtended12Bit, stream, BitsStored=12)))


def _attempt(path: Path) -> str | None:
    """Return why a file cannot be read."""
    try:
        assert _read(path).shape == (40, 30, 1)
    except DataError as error:
        return str(error)
    return None


def test_mutated_streams_give_a_picture_or_one_line(tmp_path):
    film, rng, reasons = _film(40, 30), np.random.default_rng(0), []
    stream = _encoded(film)
    for _ in range(100):
        mutated = bytearray(stream)
        for place in rng.integers(len(stream), size=3):
            mutated[place] = rng.integers(256)
        dataset = compressed(film, JPEGExtended12Bit, bytes(mutated), BitsStored=12)
        reasons.append(_attempt(saved(tmp_path / "a.dcm", dataset)))
    assert any(reasons)
    assert not any("\n" in reason for reason in reasons if reason)


def test_the_plug_in_is_for_this_syntax_alone():
    assert jpeg_extended.is_available(JPEGExtended12Bit)
    assert not jpeg_extended.is_available(dataset_of(_film()).file_meta.TransferSyntaxUID)


@pytest.mark.parametrize(("lossy", "lossless"), [("RG3_JPLY", "RG3_RLE"), ("RG2_JPLY_fixed", "RG2_J2KR")])
def test_a_real_film_is_as_its_lossless_twin(lossy, lossless):
    folder = os.environ.get("MEDXFER_TEST_DATA")
    if not folder:
        pytest.skip("MEDXFER_TEST_DATA is not set")
    found, expected = (
        _read(Path(folder) / "dicom" / f"{name}.dcm").ravel().astype(float) for name in (lossy, lossless)
    )
    assert np.corrcoef(found, expected)[0, 1] > 0.999
    assert np.abs(found - expected).mean() < 2
