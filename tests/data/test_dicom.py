"""The DICOM pixel chain, against the standard's formulas, pydicom's own functions and the 16-bit PNG path."""

import os
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.pixels.processing import (
    apply_color_lut,
    apply_modality_lut,
    apply_rescale,
    apply_voi_lut,
    convert_color_space,
)
from pydicom.sequence import Sequence
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
    generate_uid,
)

from medxfer.data.dicom import read_dicom
from medxfer.data.reading import read_image
from medxfer.errors import DataError
from tests.data.test_dicom_files import dataset_of, random_film, refusal, saved

MAX_PIXELS = 10**6


def _read(path: Path) -> np.ndarray:
    found = read_dicom(path, max_pixels=MAX_PIXELS, frame=None).pixels
    assert found.dtype == np.uint8
    assert found.ndim == 3
    return found


def _shown(tmp_path: Path, pixels: np.ndarray, **tags: object) -> np.ndarray:
    """Write a file, read it, and return the grey picture."""
    found = _read(saved(tmp_path / f"{generate_uid()}.dcm", dataset_of(pixels, **tags)))
    assert found.shape == (*pixels.shape, 1)
    return found[..., 0]


def _as_png(tmp_path: Path, pixels: np.ndarray) -> np.ndarray:
    """Return what the same numbers become when they come from a 16-bit PNG."""
    Image.fromarray(pixels.astype(np.uint16)).save(tmp_path / "same.png")
    return read_image(tmp_path / "same.png", channels=1)[..., 0]


def _window(x: np.ndarray, function: str, centre: float, width: float) -> np.ndarray:
    """Compute the formulas of PS3.3 C.11.2.1.2.1, C.11.2.1.3.1 and C.11.2.1.3.2, on 0..255, without rounding."""
    x = x.astype(np.float64)
    if function == "SIGMOID":
        return 255 / (1 + np.exp(-4 * (x - centre) / width))
    shown = ((x - (centre - 0.5)) / (width - 1) if function == "LINEAR" else (x - centre) / width) + 0.5
    return np.clip(shown, 0, 1) * 255


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize(("centre", "width"), [(2048, 4096), (1500, 900), (300, 2), (100.5, 33.25)])
def test_a_window_is_the_formula_of_the_standard(tmp_path, function, centre, width):
    film = random_film()
    found = _shown(tmp_path, film, BitsStored=12, WindowCenter=centre, WindowWidth=width, VOILUTFunction=function)
    np.testing.assert_allclose(found, _window(film, function, centre, width), atol=0.51)


def test_a_window_without_a_function_is_linear(tmp_path):
    film = random_film()
    found = _shown(tmp_path, film, BitsStored=12, WindowCenter=1800, WindowWidth=1000)
    np.testing.assert_allclose(found, _window(film, "LINEAR", 1800, 1000), atol=0.51)


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize(("slope", "intercept"), [(1, -1024), (0.5, 10), (2.5, 0)])
def test_the_window_holds_for_rescaled_values_as_in_pydicom(tmp_path, function, slope, intercept):
    centre, width = 2000 * slope + intercept, 1500 * slope
    tags = {"RescaleSlope": slope, "RescaleIntercept": intercept, "WindowCenter": centre, "WindowWidth": width}
    dataset = dataset_of(random_film(), BitsStored=12, VOILUTFunction=function, **tags)
    shown = apply_voi_lut(apply_rescale(random_film(), dataset), dataset)  # on the range of the rescaled values
    low, high = intercept, 4095 * slope + intercept
    found = _read(saved(tmp_path / "a.dcm", dataset))[..., 0]
    np.testing.assert_allclose(found, (shown - low) / (high - low) * 255, atol=0.51)


@pytest.mark.parametrize("bits", [12, 16])
def test_signed_values_and_their_window(tmp_path, bits):
    film = random_film(bottom=-2000, top=2000, dtype="int16")
    found = _shown(tmp_path, film, BitsStored=bits, WindowCenter=40, WindowWidth=400)
    np.testing.assert_allclose(found, _window(film, "LINEAR", 40, 400), atol=0.51)


def test_signed_values_without_window_are_as_their_unsigned_twins(tmp_path):
    film = random_film(bottom=-2000, top=2000, dtype="int16")
    np.testing.assert_array_equal(_shown(tmp_path, film), _as_png(tmp_path, film.astype(int) + 2000))


def test_eight_bit_pictures_are_windowed_too(tmp_path):
    film = random_film(top=256, dtype="uint8")
    found = _shown(tmp_path, film, WindowCenter=128, WindowWidth=100)
    np.testing.assert_allclose(found, _window(film, "LINEAR", 128, 100), atol=0.51)


def test_a_window_after_a_negative_slope_is_the_formula_of_the_standard(tmp_path):
    film = random_film()
    tags = {"RescaleSlope": -1, "RescaleIntercept": 4095, "WindowCenter": 2048, "WindowWidth": 2000}
    found = _shown(tmp_path, film, BitsStored=12, **tags)
    np.testing.assert_allclose(found, _window(4095 - film.astype(int), "LINEAR", 2048, 2000), atol=0.51)


def test_the_first_of_several_windows_is_used(tmp_path):
    film = random_film()
    found = _shown(tmp_path, film, BitsStored=12, WindowCenter=[1000, 3000], WindowWidth=[500, 100])
    np.testing.assert_allclose(found, _window(film, "LINEAR", 1000, 500), atol=0.51)


@pytest.mark.parametrize("bits", [10, 12, 16])
def test_without_window_a_film_is_shown_as_from_a_16_bit_png(tmp_path, bits):
    film = random_film(top=2**bits)
    np.testing.assert_array_equal(_shown(tmp_path, film, BitsStored=bits), _as_png(tmp_path, film))


@pytest.mark.parametrize(
    "tags",
    [
        {"WindowCenter": "", "WindowWidth": ""},
        {"WindowCenter": 2000, "WindowWidth": ""},
        {"WindowCenter": 2000},
        {"WindowWidth": 2000},
        {"WindowCenter": 2000, "WindowWidth": 0},
        {"WindowCenter": 2000, "WindowWidth": -5},
        {"WindowCenter": 2000, "WindowWidth": 500, "VOILUTFunction": "CUBIC"},
    ],
    ids=["both empty", "width empty", "no width", "no centre", "width 0", "width negative", "unknown function"],
)
def test_an_unusable_window_counts_as_absent(tmp_path, tags):
    film = random_film()
    np.testing.assert_array_equal(_shown(tmp_path, film, BitsStored=12, **tags), _as_png(tmp_path, film))


def test_a_window_that_is_no_number_counts_as_absent(tmp_path):
    film = random_film()
    path = saved(tmp_path / "a.dcm", dataset_of(film, BitsStored=12, WindowCenter=1234, WindowWidth=2000))
    path.write_bytes(path.read_bytes().replace(b"1234", b"wxyz"))
    np.testing.assert_array_equal(_read(path)[..., 0], _as_png(tmp_path, film))


@pytest.mark.parametrize("tags", [{}, {"WindowCenter": 2000, "WindowWidth": 1000}], ids=["percentiles", "window"])
def test_monochrome1_is_the_negative(tmp_path, tags):
    film = random_film()
    positive = _shown(tmp_path, film, BitsStored=12, **tags)
    negative = _shown(tmp_path, film, BitsStored=12, PhotometricInterpretation="MONOCHROME1", **tags)
    np.testing.assert_array_equal(negative, 255 - positive)
    inverse = _shown(tmp_path, film, BitsStored=12, PresentationLUTShape="INVERSE", **tags)
    np.testing.assert_array_equal(inverse, negative)


def test_monochrome1_is_inverted_once_though_the_file_says_so_twice(tmp_path):
    film = random_film()
    tags = {"PhotometricInterpretation": "MONOCHROME1", "PresentationLUTShape": "INVERSE"}
    np.testing.assert_array_equal(_shown(tmp_path, film, **tags), 255 - _shown(tmp_path, film))


def test_a_negative_slope_without_window_turns_the_greys_around(tmp_path):
    film = random_film()
    found = _shown(tmp_path, film, BitsStored=12, RescaleSlope=-1, RescaleIntercept=4095)
    np.testing.assert_array_equal(found, _as_png(tmp_path, 4095 - film))


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("window", [False, True])
@pytest.mark.parametrize(("value", "limit"), [(0, None), (65535, None), (60000, 65535), (65535, 60000)])
def test_padding_is_black_and_does_not_count(tmp_path, photometric, window, value, limit):
    film = random_film(bottom=1000, top=3000)
    tags: dict[str, object] = {"PhotometricInterpretation": photometric}
    if window:
        tags |= {"WindowCenter": 2000, "WindowWidth": 1500}
    expected = _shown(tmp_path, film[12:], **tags)
    padded = film.copy()
    padded[:12] = value if limit is None else np.linspace(value, limit, 40)
    if limit is not None:
        tags["PixelPaddingRangeLimit"] = limit
    found = _shown(tmp_path, padded, PixelPaddingValue=value, **tags)
    assert not found[:12].any()
    np.testing.assert_array_equal(found[12:], expected)


def test_padding_of_signed_values(tmp_path):
    film = random_film(bottom=-1000, top=1000, dtype="int16")
    padded = film.copy()
    padded[:12] = -2000
    found = _shown(tmp_path, padded, PixelPaddingValue=-2000)
    assert not found[:12].any()
    np.testing.assert_array_equal(found[12:], _shown(tmp_path, film[12:]))


def test_a_filmof_nothing_but_padding_is_no_crash(tmp_path):
    assert not _shown(tmp_path, np.full((20, 20), 7, dtype=np.uint16), PixelPaddingValue=7).any()


def _table(values: np.ndarray, first: int, bits: int) -> Sequence:
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [len(values), first, bits])
    item.add_new("LUTData", "US", [int(v) for v in values])
    return Sequence([item])


GAMMA = np.rint(65535 * np.linspace(0, 1, 4096) ** 2.2).astype(int)
STEPS = np.repeat(np.arange(0, 1024, 8), 8)


@pytest.mark.parametrize(("values", "first", "bits"), [(GAMMA, 0, 16), (STEPS, 500, 10)], ids=["gamma", "steps"])
def test_a_voi_table_is_applied_as_pydicom_does_and_spans_all_greys(tmp_path, values, first, bits):
    dataset = dataset_of(random_film(), BitsStored=12, VOILUTSequence=_table(values, first, bits))
    expected = apply_voi_lut(random_film(), dataset).astype(float)
    expected = (expected - values.min()) / (values.max() - values.min()) * 255
    np.testing.assert_allclose(_read(saved(tmp_path / "a.dcm", dataset))[..., 0], expected, atol=0.51)


def test_a_voi_table_goes_before_a_window(tmp_path):
    table = _table(GAMMA, 0, 16)
    alone = _shown(tmp_path, random_film(), BitsStored=12, VOILUTSequence=table)
    both = _shown(tmp_path, random_film(), BitsStored=12, VOILUTSequence=table, WindowCenter=100, WindowWidth=10)
    np.testing.assert_array_equal(alone, both)


def test_a_voi_table_after_an_identical_rescale_is_applied(tmp_path):
    table = _table(GAMMA, 0, 16)
    alone = _shown(tmp_path, random_film(), BitsStored=12, VOILUTSequence=table)
    both = _shown(tmp_path, random_film(), BitsStored=12, VOILUTSequence=table, RescaleSlope=1, RescaleIntercept=0)
    np.testing.assert_array_equal(alone, both)


def test_a_voi_table_without_data_counts_as_absent(tmp_path):
    table = _table(GAMMA, 0, 16)
    del table[0].LUTData
    film = random_film()
    np.testing.assert_array_equal(_shown(tmp_path, film, VOILUTSequence=table), _as_png(tmp_path, film))


def test_a_modality_table_comes_before_the_percentiles(tmp_path):
    dataset = dataset_of(random_film(), BitsStored=12, ModalityLUTSequence=_table(4095 - np.arange(4096) // 2, 0, 16))
    dataset.ModalityLUTSequence[0].ModalityLUTType = "US"
    mapped = apply_modality_lut(random_film(), dataset)
    assert not np.array_equal(mapped, random_film())
    found = _read(saved(tmp_path / "a.dcm", dataset))[..., 0]
    np.testing.assert_array_equal(found, _as_png(tmp_path, mapped))


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless, JPEG2000Lossless], ids=lambda uid: uid.name)
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_lossless_compression_changes_nothing(tmp_path, syntax, dtype):
    film = random_film(top=256 if dtype == "uint8" else 4096, dtype=dtype)
    dataset = dataset_of(film, BitsStored=8 if dtype == "uint8" else 12)
    plain = _read(saved(tmp_path / "plain.dcm", dataset))
    dataset.compress(syntax)
    np.testing.assert_array_equal(_read(saved(tmp_path / "compressed.dcm", dataset)), plain)


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless, JPEG2000Lossless], ids=lambda uid: uid.name)
def test_lossless_compression_of_colours_changes_nothing(tmp_path, syntax):
    picture = np.random.default_rng(0).integers(0, 256, (48, 40, 3), dtype=np.uint8)
    dataset = dataset_of(picture)
    dataset.compress(syntax)
    np.testing.assert_array_equal(_read(saved(tmp_path / "compressed.dcm", dataset)), picture)


def test_near_lossless_compression_changes_little(tmp_path):
    film = np.tile(np.linspace(0, 4000, 64).astype(np.uint16), (48, 1))
    dataset = dataset_of(film, BitsStored=12, WindowCenter=2048, WindowWidth=4096)
    dataset.compress(JPEGLSNearLossless, jls_error=16)
    found = _read(saved(tmp_path / "a.dcm", dataset))[..., 0]
    np.testing.assert_allclose(found, _window(film, "LINEAR", 2048, 4096), atol=16 / 4095 * 255 + 0.51)


def test_a_baseline_jpeg_inside_dicom(tmp_path):
    y, x = np.mgrid[0:48, 0:40]
    film = (60 + 2 * y + x).astype(np.uint8)
    Image.fromarray(film).save(tmp_path / "a.jpg", quality=95)
    dataset = dataset_of(film, WindowCenter=127.5, WindowWidth=255, VOILUTFunction="LINEAR_EXACT")
    dataset.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    dataset.PixelData = encapsulate([(tmp_path / "a.jpg").read_bytes()])
    found = _read(saved(tmp_path / "a.dcm", dataset))[..., 0]
    np.testing.assert_allclose(found, np.asarray(Image.open(tmp_path / "a.jpg")), atol=1)


@pytest.mark.parametrize(
    "syntax", [ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian], ids=lambda uid: uid.name
)
def test_other_encodings_of_the_tags_give_the_same_picture(tmp_path, syntax):
    film = random_film()
    plain = _shown(tmp_path, film, BitsStored=12)
    dataset = dataset_of(film, BitsStored=12)
    dataset.file_meta.TransferSyntaxUID = syntax
    if syntax == ExplicitVRBigEndian:
        dataset.PixelData = film.astype(">u2").tobytes()
        dataset["PixelData"].VR = "OW"
    np.testing.assert_array_equal(_read(saved(tmp_path / "a.dcm", dataset))[..., 0], plain)


@pytest.mark.parametrize("implicit", [True, False])
def test_a_file_without_preamble_and_meta_information_is_read(tmp_path, implicit):
    film = random_film()
    dataset = dataset_of(film, BitsStored=12)
    del dataset.file_meta
    dataset.save_as(tmp_path / "bare", implicit_vr=implicit, little_endian=True)
    np.testing.assert_array_equal(_read(tmp_path / "bare")[..., 0], _shown(tmp_path, film, BitsStored=12))


def test_rgb(tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    np.testing.assert_array_equal(_read(saved(tmp_path / "a.dcm", dataset_of(picture))), picture)


def test_rgb_in_planes(tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    planes = np.ascontiguousarray(picture.transpose(2, 0, 1)).tobytes()
    path = saved(tmp_path / "a.dcm", dataset_of(picture, PlanarConfiguration=1, PixelData=planes))
    np.testing.assert_array_equal(_read(path), picture)


def test_rgb_of_16_bits_is_scaled_by_its_depth(tmp_path):
    picture = np.random.default_rng(0).integers(0, 1024, (20, 30, 3), dtype=np.uint16)
    found = _read(saved(tmp_path / "a.dcm", dataset_of(picture, BitsStored=10)))
    np.testing.assert_allclose(found, picture / 1023 * 255, atol=0.51)


def test_luminance_and_colour_differences_become_rgb(tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    found = _read(saved(tmp_path / "a.dcm", dataset_of(picture, PhotometricInterpretation="YBR_FULL")))
    np.testing.assert_array_equal(found, convert_color_space(picture, "YBR_FULL", "RGB"))


def test_a_palette_becomes_rgb(tmp_path):
    indices = random_film(top=256, dtype="uint8")
    dataset = dataset_of(indices, PhotometricInterpretation="PALETTE COLOR")
    for number, colour in enumerate(("Red", "Green", "Blue")):
        dataset.add_new(f"{colour}PaletteColorLookupTableDescriptor", "US", [256, 0, 16])
        table = np.roll(np.arange(256), 50 * number).astype("<u2") * 257
        setattr(dataset, f"{colour}PaletteColorLookupTableData", table.tobytes())
    found = _read(saved(tmp_path / "a.dcm", dataset))
    np.testing.assert_array_equal(found, apply_color_lut(indices, dataset) // 257)
    del dataset["GreenPaletteColorLookupTableData"]
    with pytest.raises(DataError, match="palette is damaged"):
        _read(saved(tmp_path / "b.dcm", dataset))


def test_floating_point_pixels(tmp_path):
    film = random_film().astype(np.float32)
    dataset = dataset_of(film, PixelData=None, PixelRepresentation=None, BitsStored=32, FloatPixelData=film.tobytes())
    np.testing.assert_array_equal(_read(saved(tmp_path / "a.dcm", dataset))[..., 0], _as_png(tmp_path, random_film()))


@pytest.mark.parametrize("name", ["Rows", "Columns", "BitsAllocated", "SamplesPerPixel", "PhotometricInterpretation"])
def test_a_missing_image_tag_is_named(tmp_path, name):
    dataset = dataset_of(random_film())
    dataset["PixelData"].VR = "OW"
    del dataset[name]
    assert refusal(saved(tmp_path / "a.dcm", dataset)).endswith(f"lacks {name}")


def test_without_pixel_data(tmp_path):
    assert "without a picture" in refusal(saved(tmp_path / "a.dcm", dataset_of(random_film(), PixelData=None)))


@pytest.mark.parametrize("part", [0.25, 0.5, 0.9, 0.99])
def test_a_truncated_file_is_refused_in_one_line(tmp_path, part):
    path = saved(tmp_path / "a.dcm", dataset_of(random_film()))
    whole = path.read_bytes()
    path.write_bytes(whole[: int(part * len(whole))])
    assert "cannot be decoded" in refusal(path) or "without a picture" in refusal(path)


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless, JPEG2000Lossless], ids=lambda uid: uid.name)
def test_a_damaged_stream_is_refused_with_its_transfer_syntax(tmp_path, syntax):
    dataset = dataset_of(random_film(), BitsStored=12)
    dataset.compress(syntax)
    dataset.PixelData = encapsulate([b"\x00\x01\x02\x03" * 20])
    assert f"cannot be decoded ({syntax.name})" in refusal(saved(tmp_path / "a.dcm", dataset))


def test_an_unknown_transfer_syntax_is_refused(tmp_path):
    dataset = dataset_of(random_film())
    path = saved(tmp_path / "a.dcm", dataset)
    path.write_bytes(path.read_bytes().replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.99999.1.2.1\0"))
    assert "cannot be decoded (a private transfer syntax)" in refusal(path)


@pytest.mark.parametrize("tags", [{"Rows": 0}, {"BitsAllocated": 13}, {"BitsStored": 20}, {"SamplesPerPixel": 2}])
def test_impossible_image_tags_are_refused_in_one_line(tmp_path, tags):
    dataset = dataset_of(random_film())
    for name, value in tags.items():
        setattr(dataset, name, value)
    assert "DICOM file" in refusal(saved(tmp_path / "a.dcm", dataset))


def test_nothing_behind_the_preamble(tmp_path):
    (tmp_path / "a.dcm").write_bytes(bytes(128) + b"DICM")
    assert "without a picture" in refusal(tmp_path / "a.dcm")
    (tmp_path / "b.dcm").write_bytes(bytes(128) + b"DICM" + np.random.default_rng(0).bytes(500))
    assert "DICOM file" in refusal(tmp_path / "b.dcm")


def _resized_element(path: Path, element: bytes, length: int) -> None:
    """Change the length that an element of a short value representation declares, and cut its value to it."""
    content = path.read_bytes()
    start = content.index(element)
    size = int.from_bytes(content[start + 6 : start + 8], "little")
    value = content[start + 8 : start + 8 + min(size, length)]
    rest = content[start + 8 + size :]
    path.write_bytes(content[: start + 6] + length.to_bytes(2, "little") + value + rest)


@pytest.mark.parametrize("element", [b"\x02\x00\x00\x00UL", b"\x28\x00\x10\x00US"], ids=["group length", "Rows"])
def test_a_number_of_the_wrong_length_is_refused_in_one_line(tmp_path, element):
    path = saved(tmp_path / "a.dcm", dataset_of(random_film()))
    _resized_element(path, element, 1)
    assert "damaged DICOM" in refusal(path)


def test_a_run_length_that_leaves_the_filmis_refused_in_one_line(tmp_path):
    dataset = dataset_of(random_film(), BitsStored=12)
    dataset.compress(RLELossless)
    longer, whole = 16 * b"\x81\x05", 15 * b"\x81\x05"  # runs of 128: 2,048 pixels, and 1,920
    header = np.array([2, 64, 64 + len(longer)] + 13 * [0], dtype="<u4").tobytes()
    dataset.PixelData = encapsulate([header + longer + whole])
    assert "cannot be decoded" in refusal(saved(tmp_path / "a.dcm", dataset))


def test_two_transfer_syntaxes_are_refused_in_one_line(tmp_path):
    path = saved(tmp_path / "a.dcm", dataset_of(random_film()))
    path.write_bytes(path.read_bytes().replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.1000\\.1.2.1\0"))
    assert "DICOM file" in refusal(path)


@pytest.mark.parametrize(
    "tags", [{"WindowCenter": 30000, "WindowWidth": 10}, {"RescaleSlope": 0, "RescaleIntercept": 5}]
)
def test_a_window_or_slope_that_shows_nothing_counts_as_damaged(tmp_path, tags):
    film = random_film()
    np.testing.assert_array_equal(_shown(tmp_path, film, **tags), _as_png(tmp_path, film))


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
def test_a_voi_lut_is_the_same_in_both_encodings(tmp_path, syntax):
    """Without a value representation the table comes as bytes."""
    film = random_film(top=1023)
    item = Dataset()
    item.LUTDescriptor, item.LUTData = [1024, 0, 12], np.arange(500, 1524).astype("<u2").tobytes()
    item["LUTData"].VR = "OW"
    dataset = dataset_of(film, VOILUTSequence=[item])
    dataset.file_meta.TransferSyntaxUID = syntax
    np.testing.assert_allclose(_read(saved(tmp_path / "a.dcm", dataset))[..., 0], film * (255 / 1023), atol=0.51)


# What its tags say


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ({}, ("MONOCHROME2 16", "", "")),
        ({"BitsStored": 12, "Modality": "DX", "ViewPosition": "PA"}, ("MONOCHROME2 12", "DX", "PA")),
        ({"BitsStored": None, "PhotometricInterpretation": "MONOCHROME1"}, ("MONOCHROME1 16", "", "")),
        ({"Modality": "", "ViewPosition": "LL "}, ("MONOCHROME2 16", "", "LL")),
        ({"Modality": ["CR", "DX"]}, ("MONOCHROME2 16", "['CR', 'DX']", "")),
    ],
)
def test_what_may_matter_for_a_label_is_told(tmp_path, tags, expected):
    dataset = dataset_of(random_film(), **{name: value for name, value in tags.items() if value is not None})
    path = saved(tmp_path / "a.dcm", dataset)
    found = read_dicom(path, max_pixels=MAX_PIXELS, frame=None)
    assert (found.mode, found.modality, found.view) == (expected[0], expected[1], expected[2])


def test_colours_say_so(tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    found = read_dicom(saved(tmp_path / "a.dcm", dataset_of(picture)), max_pixels=MAX_PIXELS, frame=None)
    assert found.mode == "RGB 8"


# Files of the real world


@pytest.fixture(scope="module")
def real() -> Path:
    folder = os.environ.get("MEDXFER_TEST_DATA")
    if not folder:
        pytest.skip("MEDXFER_TEST_DATA is not set")
    return Path(folder) / "dicom"


def _read_real(path: Path) -> np.ndarray:
    return read_dicom(path, max_pixels=10**8, frame=None).pixels


def _by_pydicom(path: Path) -> np.ndarray:
    """Compute the picture with pydicom's own functions, on 0..255, without rounding."""
    dataset = pydicom.dcmread(path, force=True)
    if "TransferSyntaxUID" not in dataset.file_meta:
        dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    stored = dataset.pixel_array
    if dataset.PhotometricInterpretation == "PALETTE COLOR":
        colours = apply_color_lut(stored, dataset)
        return colours / (2 ** (8 * colours.itemsize) - 1) * 255
    if stored.ndim == 3:
        return stored.astype(float)
    values = apply_modality_lut(stored, dataset)
    if dataset.get("VOILUTSequence"):
        values = apply_voi_lut(values, dataset, index=0).astype(float)
        low, high = np.min(dataset.VOILUTSequence[0].LUTData), np.max(dataset.VOILUTSequence[0].LUTData)
    elif dataset.get("WindowCenter"):
        values = apply_voi_lut(values, dataset, index=0).astype(float)
        low, high = _range(dataset)
    else:
        low, high = np.percentile(values, (0.5, 99.5))
    shown = np.clip((values - low) / (high - low), 0, 1) * 255
    return (255 - shown if dataset.PhotometricInterpretation == "MONOCHROME1" else shown)[..., np.newaxis]


def _range(dataset: Dataset) -> tuple[float, float]:
    """Return what numbers of a data set may be behind its modality table or slope."""
    if dataset.get("ModalityLUTSequence"):
        return 0, 2 ** dataset.ModalityLUTSequence[0].LUTDescriptor[2] - 1
    half = 2 ** (dataset.BitsStored - 1)
    ends = (-half, half - 1) if dataset.PixelRepresentation else (0, 2 * half - 1)
    slope, intercept = dataset.get("RescaleSlope", 1), dataset.get("RescaleIntercept", 0)
    return ends[0] * slope + intercept, ends[1] * slope + intercept


READABLE = [
    "1.2.276.0.7230010.3.1.4.8323329.6904.1517875201.850819", "CR-ModalitySequenceLUT", "ExplVR_BigEnd",
    "Fake_MONOHR1", "HTJ2KLossless_08_RGB", "J2K_pixelrep_mismatch", "JPEG-lossy", "OT-PAL-8-face",
    "OutOfBoundsOverlay", "RG1_J2KI", "RG2_J2KR", "RG2_JLSL", "RG2_JPLY_fixed", "RG3_J2KR", "RG3_JLSL", "RG3_JPLL",
    "RG3_JPLY", "RG3_RLE", "gdcm-CR-MONO1-10-chest", "image_dfl", "vlut_04",
]  # fmt: skip


@pytest.mark.filterwarnings("ignore")  # pydicom's remarks on these files
@pytest.mark.parametrize("name", READABLE)
def test_real_files_are_as_pydicom_shows_them(real, name):
    np.testing.assert_allclose(_read_real(real / f"{name}.dcm"), _by_pydicom(real / f"{name}.dcm"), atol=0.51)


@pytest.mark.parametrize(
    "names",
    [
        ("RG3_RLE", "RG3_J2KR", "RG3_JPLL", "RG3_JLSL"),
        ("RG2_J2KR", "RG2_JLSL"),
    ],
    ids=["RG3", "RG2"],
)
def test_one_film_in_several_real_files_is_one_picture(real, names):
    first, *others = (_read_real(real / f"{name}.dcm") for name in names)
    assert first.std() > 20
    for other in others:
        np.testing.assert_array_equal(other, first)


def test_a_real_film_of_the_other_photometric_interpretation_is_the_negative(real):
    """One of the two says MONOCHROME1 for the same stored numbers."""
    film, fake = (_read_real(real / f"{name}.dcm") for name in (READABLE[0], "Fake_MONOHR1"))
    assert film.std() > 20
    np.testing.assert_array_equal(fake, 255 - film)


UNREADABLE = {
    "GH1146": "is a DICOM file without a picture (no pixel data)",
    "GH178": "is a DICOM file without a picture (no pixel data)",
    "MR_truncated": "is a DICOM file whose pixels cannot be decoded (Explicit VR Little Endian): ",
    "badVR": "is a damaged DICOM file: its image tags cannot be read",
    "chrJapMulti": "is a DICOM file without a picture (no pixel data)",
    "dwv-test_no-number-rows": "is a DICOM file that lacks Rows",
    "rtplan": "is a DICOM file without a picture (no pixel data)",
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_real_files_without_a_picture_are_refused_in_one_line(real, name):
    assert refusal(real / f"{name}.dcm").startswith(UNREADABLE[name])


def test_all_real_files_are_tested(real):
    assert sorted(path.stem for path in real.glob("*.dcm")) == sorted([*READABLE, *UNREADABLE])


@pytest.mark.parametrize(("dtype", "value", "representation"), [("uint16", -1, "SS"), ("int16", 63536, "US")])
def test_padding_in_the_other_sign_is_padding_all_the_same(tmp_path, dtype, value, representation):
    film = random_film(bottom=0, top=2000, dtype=dtype)
    film[:20] = np.array(value % 2**16, dtype=np.uint16).view(dtype)
    dataset = dataset_of(film, BitsStored=16)
    dataset.add_new("PixelPaddingValue", representation, value)
    found = _read(saved(tmp_path / "a.dcm", dataset))[..., 0]
    assert (found[:20] == 0).all()
    rest = _shown(tmp_path, film[20:], BitsStored=16)
    np.testing.assert_array_equal(found[20:], rest)


def test_a_table_s_first_value_may_be_signed_though_it_is_written_unsigned(tmp_path):
    film = random_film(bottom=-2000, top=2000, dtype="int16")
    item = Dataset()
    item.LUTDescriptor = [4096, 2**16 - 2048, 16]
    item.add_new("LUTData", "OW", np.arange(0, 2 * 4096, 2).astype("<u2").tobytes())
    tables = Sequence([item])
    tables[0]["LUTDescriptor"].VR = "US"
    dataset = dataset_of(film, BitsStored=16, VOILUTSequence=tables)
    found = _read(saved(tmp_path / "a.dcm", dataset))[..., 0]
    np.testing.assert_allclose(found, (film.astype(float) + 2048) * 2 / (2 * 4095) * 255, atol=0.51)


@pytest.mark.parametrize("place", ["PerFrame", "Shared"])
def test_an_enhanced_file_s_frame_has_its_own_window_and_rescale(tmp_path, place):
    film = random_film()
    window, rescale, group = Dataset(), Dataset(), Dataset()
    window.WindowCenter, window.WindowWidth = 900, 1200
    rescale.RescaleSlope, rescale.RescaleIntercept = 1, -1024
    group.FrameVOILUTSequence = Sequence([window])
    group.PixelValueTransformationSequence = Sequence([rescale])
    dataset = dataset_of(film, BitsStored=12, **{f"{place}FunctionalGroupsSequence": Sequence([group])})
    found = _read(saved(tmp_path / "a.dcm", dataset))[..., 0]
    np.testing.assert_allclose(found, _window(film.astype(int) - 1024, "LINEAR", 900, 1200), atol=0.51)


def test_a_slope_beyond_all_bounds_counts_as_damaged(tmp_path):
    film = random_film()
    found = _shown(tmp_path, film, BitsStored=12, RescaleSlope="1e300", RescaleIntercept=0)
    np.testing.assert_array_equal(found, _as_png(tmp_path, film))
