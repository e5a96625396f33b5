"""Any image file to bytes, against Pillow and plain arithmetic; and every kind of file that is no image."""

import io
import os
import struct
import tracemalloc
import warnings
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps, TiffImagePlugin
from pydicom.uid import DeflatedExplicitVRLittleEndian, JPEG2000Lossless, JPEGBaseline8Bit

from medxfer.data.dicom_files import write_dicom
from medxfer.data.intensity import to_uint8
from medxfer.data.reading import FORMATS, IMAGE_SUFFIXES, Picture, find_images, read_image, read_picture
from medxfer.errors import DataError
from tests.data.test_dicom_files import compressed, dataset_of, saved


def _random(*shape: int, top: int = 256, dtype: str = "uint8", seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, top, shape).astype(dtype)


def _smooth(height: int = 48, width: int = 40) -> np.ndarray:
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([60 + 2 * y + x, 200 - y - 2 * x, 80 + y + x], axis=-1).astype(np.uint8)


def _saved(path: Path, image: np.ndarray | Image.Image, **options: object) -> Path:
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(path, **options)
    return path


def _read(path: Path, channels: int = 1) -> np.ndarray:
    found = read_image(path, channels=channels)
    assert found.dtype == np.uint8
    assert found.flags.c_contiguous
    assert found.shape[2:] == (channels,)
    return found


def _luminance(colours: np.ndarray) -> np.ndarray:
    """Compute ITU-R 601-2 luma, without rounding."""
    return colours.astype(np.float64) @ [0.299, 0.587, 0.114]


def _attempt(path: Path) -> np.ndarray | str:
    """Return the picture, or the one line that says why there is none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's remarks on damage
            return read_image(path, channels=3)
    except DataError as error:
        return str(error)


def _refusal(path: Path, **options: int) -> str:
    with pytest.raises(DataError) as caught:
        read_image(path, channels=1, **options)
    text = str(caught.value)
    assert text.startswith(f"{path}: ")
    assert "\n" not in text
    return text.removeprefix(f"{path}: ")


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.tif", "a.PNG"])
def test_grey_bytes_stay_as_they_are_and_are_repeated_for_three_channels(tmp_path, name):
    grey = _random(30, 20)
    path = _saved(tmp_path / name, grey)
    np.testing.assert_array_equal(_read(path)[..., 0], grey)
    np.testing.assert_array_equal(_read(path, 3), np.stack(3 * [grey], axis=-1))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.png", {}),
        ("a.bmp", {}),
        ("a.webp", {"lossless": True}),
        ("a.tif", {}),
        ("a.tif", {"compression": "tiff_lzw"}),
        ("a.tif", {"compression": "tiff_deflate"}),
        ("a.tif", {"compression": "packbits"}),
    ],
)
def test_colours_stay_as_they_are_and_become_grey_by_luminance(tmp_path, name, options):
    colours = _random(30, 20, 3)
    path = _saved(tmp_path / name, colours, **options)
    np.testing.assert_array_equal(_read(path, 3), colours)
    np.testing.assert_allclose(_read(path)[..., 0], _luminance(colours), atol=0.51)


@pytest.mark.parametrize(
    ("name", "options"), [("a.jpg", {"quality": 95}), ("a.jpg", {"progressive": True}), ("a.webp", {"quality": 95})]
)
def test_lossy_formats_are_as_pillow_decodes_them(tmp_path, name, options):
    path = _saved(tmp_path / name, _smooth(), **options)
    np.testing.assert_array_equal(_read(path, 3), np.asarray(Image.open(path)))
    assert np.abs(_read(path, 3).astype(int) - _smooth()).mean() < 4


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
@pytest.mark.parametrize("top", [256, 4096, 65536])
def test_sixteen_bits_are_scaled_by_robust_percentiles(tmp_path, name, top):
    film = _random(40, 50, top=top, dtype="uint16")
    low, high = np.percentile(film.astype(float), (0.5, 99.5))
    found = _read(_saved(tmp_path / name, film))[..., 0]
    np.testing.assert_allclose(found, np.clip((film - low) / (high - low), 0, 1) * 255, atol=0.51)


def test_big_endian_tiff_is_as_little_endian(tmp_path):
    film = _random(40, 50, top=4096, dtype="uint16")
    little = _read(_saved(tmp_path / "little.tif", film))
    entries = [(256, 3, 50), (257, 3, 40), (258, 3, 16), (259, 3, 1), (262, 3, 1), (273, 4, 200), (277, 3, 1),
               (278, 3, 40), (279, 4, film.nbytes)]  # fmt: skip
    content = struct.pack(">2sHIH", b"MM", 42, 8, len(entries))
    for tag, kind, value in entries:
        content += struct.pack(">HHI", tag, kind, 1) + struct.pack(
            ">HH" if kind == 3 else ">I", *(value, 0)[: 5 - kind]
        )
    (tmp_path / "big.tif").write_bytes(content.ljust(200, b"\0") + film.astype(">u2").tobytes())
    np.testing.assert_array_equal(_read(tmp_path / "big.tif"), little)


@pytest.mark.parametrize("dtype", ["int32", "float32"])
def test_tiff_of_other_numbers(tmp_path, dtype):
    film = (_random(40, 50, top=70000, dtype="int64") - 1000).astype(dtype)
    np.testing.assert_array_equal(_read(_saved(tmp_path / "a.tif", film))[..., 0], to_uint8(film))


def test_numbers_that_are_not_finite_in_a_tiff_are_no_crash(tmp_path):
    film = _random(40, 50, top=4096, dtype="float32")
    film[0, 0], film[0, 1] = np.nan, np.inf
    assert _read(_saved(tmp_path / "a.tif", film))[0, :2, 0].tolist() == [0, 255]


def test_black_and_white_become_0_and_255(tmp_path):
    bits = _random(30, 20, top=2).astype(bool)
    found = _read(_saved(tmp_path / "a.png", Image.fromarray(bits)))
    np.testing.assert_array_equal(found[..., 0], bits * 255)


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.tif"])
def test_a_palette_gives_its_colours(tmp_path, name):
    colours = _random(6, 3, seed=1)
    indices = _random(30, 20, top=6)
    picture = Image.fromarray(indices).convert("P")
    picture.putpalette(colours.tobytes())
    picture.putdata(indices.ravel().tolist())
    path = _saved(tmp_path / name, picture)
    np.testing.assert_array_equal(_read(path, 3), colours[indices])
    np.testing.assert_allclose(_read(path)[..., 0], _luminance(colours[indices]), atol=0.51)


def test_a_palette_with_a_transparent_colour_is_shown_on_black(tmp_path):
    colours = np.array([[200, 100, 50], [10, 250, 30]], dtype=np.uint8)
    indices = _random(30, 20, top=2)
    picture = Image.new("P", (20, 30))
    picture.putpalette(colours.tobytes())
    picture.putdata(indices.ravel().tolist())
    path = _saved(tmp_path / "a.png", picture, transparency=0)
    np.testing.assert_array_equal(_read(path, 3), np.where(indices[..., None] == 0, 0, colours[indices]))


@pytest.mark.parametrize(
    ("name", "options"), [("a.png", {}), ("a.tif", {}), ("a.webp", {"lossless": True, "exact": True})]
)
def test_transparent_colours_are_shown_on_black(tmp_path, name, options):
    picture = _random(30, 20, 4)
    picture[:5, :, 3], picture[5:10, :, 3] = 0, 255
    expected = picture[..., :3] * (picture[..., 3:] / 255)
    path = _saved(tmp_path / name, picture, **options)
    np.testing.assert_allclose(_read(path, 3), expected, atol=1)
    np.testing.assert_allclose(_read(path)[..., 0], _luminance(expected), atol=1.5)


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_transparent_grey_is_shown_on_black(tmp_path, name):
    picture = _random(30, 20, 2)
    picture[:5, :, 1], picture[5:10, :, 1] = 0, 255
    path = _saved(tmp_path / name, Image.fromarray(picture))
    expected = picture[..., 0] * (picture[..., 1] / 255)
    np.testing.assert_allclose(_read(path)[..., 0], expected, atol=1)
    np.testing.assert_array_equal(_read(path, 3), np.repeat(_read(path), 3, axis=2))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    "kind",
    [
        "L",
        "RGB",
    ],
)
def test_a_colour_declared_transparent_is_shown_on_black(tmp_path, kind, channels):
    picture = Image.new(kind, (8, 8), 200 if kind == "L" else (200, 200, 200))
    path = _saved(tmp_path / "a.png", picture, transparency=200 if kind == "L" else (200, 200, 200))
    assert not _read(path, channels).any()


def test_four_colour_jpeg_becomes_rgb(tmp_path):
    path = _saved(tmp_path / "a.jpg", Image.fromarray(_smooth()).convert("CMYK"), quality=95)
    assert np.abs(_read(path, 3).astype(int) - _smooth()).mean() < 4


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.tif", "a.webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path, name, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = _saved(tmp_path / name, _smooth(48, 24), exif=exif, quality=95)
    stored = np.asarray(Image.open(path))  # (row, column) of the file, turned by the words of the EXIF standard
    turned = {
        1: stored, 2: stored[:, ::-1], 3: stored[::-1, ::-1], 4: stored[::-1], 5: stored.transpose(1, 0, 2),
        6: np.rot90(stored, -1), 7: stored[::-1, ::-1].transpose(1, 0, 2), 8: np.rot90(stored),
    }[orientation]  # fmt: skip
    if name != "a.tif":  # Pillow turns a TIFF by itself when it loads
        np.testing.assert_array_equal(_read(path, 3), turned)
    np.testing.assert_array_equal(_read(path, 3), np.asarray(ImageOps.exif_transpose(Image.open(path))))
    assert _read(path, 3).shape[:2] == ((48, 24) if orientation < 5 else (24, 48))


def test_the_content_decides_and_not_the_name(tmp_path):
    grey = _random(30, 20)
    np.testing.assert_array_equal(_read(_saved(tmp_path / "a.dcm", grey, format="PNG"))[..., 0], grey)
    np.testing.assert_array_equal(_read(_saved(tmp_path / "b", grey, format="BMP"))[..., 0], grey)
    film = _random(30, 20, top=4096, dtype="uint16")
    write_dicom(tmp_path / "c.png", film, patient_id="P")
    np.testing.assert_array_equal(_read(tmp_path / "c.png")[..., 0], to_uint8(film))
    assert _read(tmp_path / "c.png", 3).shape == (30, 20, 3)


@pytest.mark.parametrize("suffix", ["gif", "ppm", "ico", "tga", "jp2", "eps"])
def test_other_formats_of_pillow_are_refused(tmp_path, suffix):
    text = _refusal(_saved(tmp_path / f"a.{suffix}", _smooth()))
    assert text == "is not a PNG, JPEG, TIFF, BMP, WebP or DICOM image"
    assert set(FORMATS) == {"PNG", "JPEG", "TIFF", "BMP", "WEBP"}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (b"path,label\na.png,benign\n", "is not a PNG"),
        (b"<html><body>404 Not Found</body></html>", "is not a PNG"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n", "is not a PNG"),
        (bytes(1000), "is not a PNG"),
        (b"\x89PNG\r\n\x1a\n", "is not a PNG"),
        (b"\xff\xd8\xff", "is not a PNG"),
        (b"MZ" + bytes(300), "is not a PNG"),
    ],
    ids=["empty", "table", "web page", "pointer of Git LFS", "zeros", "PNG signature", "JPEG signature", "program"],
)
def test_what_is_no_image_is_refused_in_one_line(tmp_path, content, reason):
    (tmp_path / "a.png").write_bytes(content)
    assert _refusal(tmp_path / "a.png").startswith(reason)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif", "a.bmp", "a.webp"])
@pytest.mark.parametrize("part", [0.3, 0.6, 0.9])
def test_a_truncated_image_is_refused(tmp_path, name, part):
    path = _saved(tmp_path / name, _random(64, 64, 3))
    whole = path.read_bytes()
    path.write_bytes(whole[: int(part * len(whole))])
    assert _refusal(path).startswith(("is damaged: ", "is not a PNG"))


def test_a_damaged_png_is_refused_with_the_reason(tmp_path):
    path = _saved(tmp_path / "a.png", _random(64, 64))
    whole = bytearray(path.read_bytes())
    whole[len(whole) // 2] ^= 0xFF
    path.write_bytes(whole)
    assert _refusal(path).startswith("is damaged: ")


def test_a_missing_file_and_a_folder_are_refused_by_the_system_s_own_words(tmp_path):
    assert _refusal(tmp_path / "no.png") == "No such file or directory"
    assert _refusal(tmp_path) == "Is a directory"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_refused(tmp_path):
    path = _saved(tmp_path / "a.png", _random(8, 8))
    path.chmod(0)
    assert _refusal(path) == "Permission denied"


def _pages(path: Path, pages: list[np.ndarray]) -> Path:
    first, *others = (Image.fromarray(page) for page in pages)
    options = {"lossless": True} if path.suffix == ".webp" else {}
    return _saved(path, first, save_all=True, append_images=others, **options)


@pytest.mark.parametrize("suffix", ["tif", "webp", "png"])
def test_several_pictures_in_one_file_are_refused_unless_one_is_chosen(tmp_path, suffix):
    path = _pages(tmp_path / f"a.{suffix}", [_random(16, 16, 3, seed=seed) for seed in range(3)])
    assert _refusal(path) == (
        "holds 3 pictures; one is needed: save the one you want, or choose it: --data.frame first (or middle)"
    )


@pytest.mark.parametrize("count", [1, 2, 3, 6])
@pytest.mark.parametrize("suffix", ["tif", "webp", "png"])
def test_the_first_or_the_middle_of_several_pictures_is_read(tmp_path, suffix, count):
    pages = [_random(16, 16, 3, seed=seed) for seed in range(count)]
    path = _pages(tmp_path / f"a.{suffix}", pages)
    for frame, index in (("first", 0), ("middle", (count - 1) // 2)):
        np.testing.assert_array_equal(read_image(path, channels=3, frame=frame), pages[index])


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_a_page_of_any_size_and_depth_is_read(tmp_path, dtype):
    pages = [_random(10 + page, 20, top=250, dtype=dtype, seed=page) for page in range(3)]
    path = _pages(tmp_path / "a.tif", pages)
    alone = _read(_saved(tmp_path / "alone.tif", pages[1]))
    np.testing.assert_array_equal(read_image(path, channels=1, frame="middle"), alone)


def test_a_chosen_page_that_is_too_large_is_refused(tmp_path):
    path = _pages(tmp_path / "a.tif", [_random(side, side) for side in (10, 50, 10)])
    assert read_image(path, channels=1, max_pixels=2000, frame="first").shape == (10, 10, 1)
    with pytest.raises(DataError, match="has 50 × 50 pixels, more than the 2,000 that are allowed"):
        read_image(path, channels=1, max_pixels=2000, frame="middle")


def test_of_16_bit_colours_only_the_first_page_is_read(tmp_path):
    pages = [_random(20, 16, 3, top=4096, dtype="uint16", seed=seed) for seed in range(3)]
    assert cv2.imwritemulti(str(tmp_path / "a.tif"), pages)
    found = read_image(tmp_path / "a.tif", channels=3, frame="first")
    np.testing.assert_array_equal(found, to_uint8(pages[0][..., ::-1]))
    with pytest.raises(DataError, match="is a TIFF of 16 bits in colour, of which only the first picture can be read"):
        read_image(tmp_path / "a.tif", channels=3, frame="middle")


@pytest.mark.parametrize("frame", [None, "first", "middle"])
def test_a_cameras_previews_are_no_pictures_to_choose_from(tmp_path, frame):
    picture, preview = Image.fromarray(_smooth()), Image.fromarray(_smooth(8, 8))
    path = _saved(tmp_path / "a.jpg", picture, format="MPO", save_all=True, append_images=[preview], quality=95)
    assert read_image(path, channels=3, frame=frame).shape == (48, 40, 3)


def _colours(*shape: int) -> Image.Image:
    return Image.fromarray(_random(*shape))


@pytest.mark.parametrize(
    ("name", "picture", "options", "expected"),
    [
        ("a.png", _colours(20, 10), {}, ("PNG", "L")),
        ("a.png", _colours(20, 10, 3), {}, ("PNG", "RGB")),
        ("a.png", _colours(20, 10, 4), {}, ("PNG", "RGBA")),
        ("a.png", Image.new("1", (10, 20)), {}, ("PNG", "1")),
        ("a.png", Image.fromarray(_random(20, 10, dtype="uint16")), {}, ("PNG", "I;16")),
        ("a.jpg", _colours(20, 10, 3), {}, ("JPEG", "RGB")),
        ("a.jpg", _colours(20, 10, 3), {"format": "MPO", "save_all": True, "append_images": [_colours(8, 8, 3)]},
         ("JPEG", "RGB")),
        ("a.jpg", _colours(20, 10, 3).convert("CMYK"), {}, ("JPEG", "CMYK")),
        ("a.tif", Image.fromarray(_random(20, 10, dtype="float32")), {}, ("TIFF", "F")),
        ("a.bmp", _colours(20, 10), {}, ("BMP", "L")),
        ("a.bmp", _colours(20, 10, 3).quantize(4), {}, ("BMP", "P")),
        ("a.webp", _colours(20, 10, 3), {}, ("WEBP", "RGB")),
    ],
)  # fmt: skip
@pytest.mark.parametrize("channels", [1, 3])
def test_format_and_mode_are_those_of_the_file(tmp_path, name, picture, options, expected, channels):
    found = read_picture(_saved(tmp_path / name, picture, **options), channels=channels)
    assert isinstance(found, Picture)
    assert (found.format, found.mode, found.modality, found.view) == (*expected, "", "")
    assert found.pixels.shape == (20, 10, channels)


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_the_mode_tells_16_bits_that_pillow_would_cut(tmp_path, name):
    found = read_picture(_deep(tmp_path / name, _random(20, 10, 3, top=4096, dtype="uint16")), channels=3)
    assert found.mode == "RGB;16"


def test_a_dicom_file_says_what_it_is(tmp_path):
    path = saved(tmp_path / "a.png", dataset_of(_random(20, 10), Modality="DX", ViewPosition="AP"))
    found = read_picture(path, channels=3)
    assert (found.format, found.mode, found.modality, found.view) == ("DICOM", "MONOCHROME2 8", "DX", "AP")
    assert found.pixels.shape == (20, 10, 3)


def _png_header(width: int, height: int) -> bytes:
    """Return a PNG that says to be large and holds next to nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")


def test_a_picture_larger_than_allowed_is_refused_before_it_is_decoded(tmp_path):
    (tmp_path / "a.png").write_bytes(_png_header(5000, 4000))
    found = _refusal(tmp_path / "a.png", max_pixels=19_999_999)
    assert found == "has 5000 × 4000 pixels, more than the 19,999,999 that are allowed"
    assert _refusal(tmp_path / "a.png", max_pixels=20_000_000).startswith("is damaged")


HUGE = 60_000
"""Pixels on each side of a picture that nothing has the memory for."""


def _huge_png(path: Path) -> None:
    path.write_bytes(_png_header(HUGE, HUGE))


def _with_size(path: Path, marker: bytes, size: bytes, **options: object) -> None:
    """Save a small picture and change the size behind a marker."""
    content = _saved(path, _smooth(), **options).read_bytes()
    place = content.index(marker) + len(marker)
    path.write_bytes(content[:place] + size + content[place + len(size) :])


def _huge_jpeg(path: Path) -> None:
    _with_size(path, b"\xff\xc0\x00\x11\x08", struct.pack(">HH", HUGE, HUGE), format="JPEG")


def _huge_bmp(path: Path) -> None:
    _with_size(path, struct.pack("<I", 40), struct.pack("<ii", HUGE, HUGE), format="BMP")


def _huge_tiff(path: Path) -> None:
    content = _saved(path, _smooth(), format="TIFF").read_bytes()
    for tag, side in ((256, 40), (257, 48)):
        for kind in ("HHIHH", "HHII"):
            before = struct.pack(
                f"<{kind}", tag, 3 if kind == "HHIHH" else 4, 1, side, *([0] if kind == "HHIHH" else [])
            )
            content = content.replace(before, struct.pack("<HHII", tag, 4, 1, HUGE))
    path.write_bytes(content)


def _huge_webp(path: Path) -> None:
    """An animation's canvas; a single picture of this format has at most 16,383 pixels on each side."""
    _pages(path.with_suffix(".webp"), [_random(8, 8, seed=seed) for seed in range(2)])
    content = path.with_suffix(".webp").read_bytes()
    place = content.index(b"VP8X") + 12
    side = struct.pack("<I", HUGE - 1)[:3]
    path.write_bytes(content[:place] + 2 * side + content[place + 6 :])


def _huge_dicom(path: Path) -> None:
    saved(path, dataset_of(_random(48, 40), Rows=HUGE, Columns=HUGE))


def _huge_deflated_dicom(path: Path) -> None:
    dataset = dataset_of(_random(48, 40), Rows=HUGE, Columns=HUGE)
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    saved(path, dataset)


def _stream(content: str, **options: object) -> bytes:
    file = io.BytesIO()
    Image.fromarray(_random(48, 40)).save(file, content, **options)
    return file.getvalue()


def _huge_jpeg_dicom(path: Path) -> None:
    """Its tags say that it is small."""
    stream = _stream("JPEG")
    place = stream.index(b"\xff\xc0") + 5
    stream = stream[:place] + struct.pack(">HH", HUGE, HUGE) + stream[place + 4 :]
    saved(path, compressed(_random(48, 40), JPEGBaseline8Bit, stream))


def _huge_j2k_dicom(path: Path) -> None:
    stream = _stream("JPEG2000", no_jp2=True)
    place = stream.index(b"\xff\x4f\xff\x51") + 8
    stream = stream[:place] + struct.pack(">2I", HUGE, HUGE) + stream[place + 8 :]
    saved(path, compressed(_random(48, 40), JPEG2000Lossless, stream))


@pytest.mark.parametrize(
    "make",
    [_huge_png, _huge_jpeg, _huge_tiff, _huge_bmp, _huge_webp, _huge_dicom, _huge_deflated_dicom, _huge_jpeg_dicom,
     _huge_j2k_dicom],
)  # fmt: skip
@pytest.mark.parametrize("frame", [None, "middle"])
def test_every_decoder_refuses_what_is_too_large_in_little_memory(tmp_path, make, frame):
    make(tmp_path / "a")
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=f"{HUGE} × {HUGE}"):
            read_image(tmp_path / "a", channels=1, frame=frame)
        assert tracemalloc.get_traced_memory()[1] < 50 * 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("side", [20_000, 100_000])
def test_a_bomb_is_not_called_damaged(tmp_path, side):
    (tmp_path / "a.png").write_bytes(_png_header(side, side))
    found = _refusal(tmp_path / "a.png")
    assert found == f"has {side} × {side} pixels, more than the 150,000,000 that are allowed"


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "bmp", "webp"])
def test_the_own_limit_goes_before_that_of_pillow(tmp_path, monkeypatch, suffix):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    path = _saved(tmp_path / f"a.{suffix}", _smooth())
    assert read_image(path, channels=3, max_pixels=48 * 40).shape == (48, 40, 3)
    assert "more than the 1,919 that are allowed" in _refusal(path, max_pixels=48 * 40 - 1)
    assert Image.MAX_IMAGE_PIXELS == 100  # also for whoever else uses Pillow


def test_the_first_of_a_cameras_pictures_is_the_picture(tmp_path):
    picture, preview = Image.fromarray(_random(24, 20, 3)), Image.fromarray(_random(8, 8, 3))
    picture.save(tmp_path / "a.jpg", format="MPO", save_all=True, append_images=[preview], quality=95)
    picture.save(tmp_path / "b.jpg", quality=95)
    np.testing.assert_array_equal(
        read_image(tmp_path / "a.jpg", channels=3), read_image(tmp_path / "b.jpg", channels=3)
    )


def test_a_large_picture_that_is_allowed_brings_no_warning(tmp_path):
    (tmp_path / "a.png").write_bytes(_png_header(10_000, 9_500))
    with pytest.raises(DataError):
        read_image(tmp_path / "a.png", channels=1)


def test_a_tiff_with_a_damaged_second_page_is_refused_in_one_line(tmp_path):
    pages = [Image.fromarray(_random(8, 8, seed=seed)) for seed in range(2)]
    path = _saved(tmp_path / "a.tif", pages[0], save_all=True, append_images=pages[1:])
    content = path.read_bytes()
    place = max(content.rfind(struct.pack("<HHI", 257, kind, 1)) for kind in (3, 4))
    path.write_bytes(content[:place] + struct.pack("<H", 32000) + content[place + 2 :])
    _refusal(path)


def test_a_damaged_exif_block_is_refused_in_one_line_or_ignored(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x011A] = 72.0
    path = _saved(tmp_path / "a.jpg", _smooth(), exif=exif)
    content, found = path.read_bytes(), 0
    for order in "<>":
        rational, text = struct.pack(f"{order}HHI", 0x011A, 5, 1), struct.pack(f"{order}HHI", 0x011A, 2, 8)
        found += content.count(rational)
        content = content.replace(rational, text)  # a resolution that is text
    assert found == 1
    path.write_bytes(content)
    found = _attempt(path)
    assert "\n" not in found if isinstance(found, str) else found.shape == (48, 40, 3)


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "bmp", "webp"])
def test_mutated_files_give_a_picture_or_one_line(tmp_path, suffix):
    whole = _saved(tmp_path / f"a.{suffix}", _random(24, 20, 3)).read_bytes()
    rng = np.random.default_rng(0)
    found = []
    for _ in range(150):
        content = bytearray(whole)
        for place in rng.integers(len(content), size=rng.integers(1, 6)):
            content[place] = rng.integers(256)
        (tmp_path / "mutated").write_bytes(content)
        found.append(_attempt(tmp_path / "mutated"))
    refusals = [text for text in found if isinstance(text, str)]
    assert refusals
    assert not any("\n" in text for text in refusals)


def test_images_are_found_by_suffix_or_as_dicom_without_one(tmp_path):
    film = _random(8, 8, top=4096, dtype="uint16")
    (tmp_path / "b" / ".hidden").mkdir(parents=True)
    for name in ("c.png", "a.JPG", "b/x.tiff", "b/y.webp", "z.dicom", "q.bmp"):
        (tmp_path / name).write_bytes(b"the content is not looked at")
    for name in ("b/plain", "1.2.840.113619"):
        write_dicom(tmp_path / name, film, patient_id="P")
    for name in ("notes.txt", "labels.csv", ".c.png", "b/.hidden/d.png", "README", "archive.7"):
        (tmp_path / name).write_bytes(b"no image, or hidden")
    found = [path.relative_to(tmp_path).as_posix() for path in find_images(tmp_path)]
    assert found == ["1.2.840.113619", "a.JPG", "b/plain", "b/x.tiff", "b/y.webp", "c.png", "q.bmp", "z.dicom"]


def test_linked_folders_are_entered_once_also_where_links_lead_back(tmp_path):
    (tmp_path / "archive" / "deep").mkdir(parents=True)
    (tmp_path / "archive" / "deep" / "1.png").write_bytes(b"")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "linked").symlink_to(tmp_path / "archive")
    (tmp_path / "archive" / "back").symlink_to(tmp_path / "data")
    (tmp_path / "archive" / "self").symlink_to(tmp_path / "archive")
    assert find_images(tmp_path / "data") == [tmp_path / "data" / "linked" / "deep" / "1.png"]


def test_a_folder_without_images_gives_none(tmp_path):
    (tmp_path / "notes.txt").write_text("nothing here")
    assert find_images(tmp_path) == []


def test_files_of_the_real_world_are_read_or_refused_in_one_line():
    """Every file below MEDXFER_TEST_DATA whose reading fails, fails with a DataError."""
    folder = os.environ.get("MEDXFER_TEST_DATA")
    if not folder:
        pytest.skip("MEDXFER_TEST_DATA is not set")
    kept: dict[tuple[Path, str], list[Path]] = {}
    for path in sorted(p for p in Path(folder).rglob("*") if p.is_file()):
        kept.setdefault((path.parent, path.suffix if path.suffix in IMAGE_SUFFIXES else path.name), []).append(path)
    # Of many files of a kind in one folder, 30 will do; DICOM files all differ.
    chosen = [p for (_, kind), group in kept.items() for p in (group if kind == ".dcm" else group[:30])]
    assert chosen, f"{folder} holds no file"
    found = {path: _attempt(path) for path in chosen}
    assert any(not isinstance(picture, str) and picture.any() for picture in found.values())
    refused = {path: text for path, text in found.items() if isinstance(text, str)}
    assert all(text.startswith(f"{path}: ") and "\n" not in text for path, text in refused.items())


def _deep(path: Path, pixels: np.ndarray) -> Path:
    assert cv2.imwrite(str(path), pixels)
    return path


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_sixteen_bit_colours_share_one_range(tmp_path, name):
    """A 12-bit picture in 16 bits; Pillow alone would keep the upper eight of them."""
    ramp = np.linspace(0, 4095, 64 * 48).reshape(64, 48)
    bgr = np.stack([ramp / 4, ramp / 2, ramp], axis=2).astype(np.uint16)
    found = _read(_deep(tmp_path / name, bgr), channels=3)
    np.testing.assert_array_equal(found, to_uint8(bgr[..., ::-1]))
    assert found[..., 0].max() == 255


def test_sixteen_bit_transparency_is_shown_on_black(tmp_path):
    pixels = np.full((40, 40, 4), 1000, dtype=np.uint16)
    pixels[:20, :, :3] = 4000
    pixels[..., 3] = 65535
    pixels[:, :10, 3] = 0
    found = _read(_deep(tmp_path / "a.png", pixels), channels=3)
    assert (found[:, :10] == 0).all()
    assert (found[:20, 10:] == 255).all()
    assert (found[20:, 10:] == 0).all()


@pytest.mark.parametrize("mode", ["I;16", "F"])
def test_white_is_zero_is_turned_at_any_depth(tmp_path, mode):
    pixels = np.linspace(0, 4000, 40 * 30).reshape(40, 30).astype(np.uint16 if mode == "I;16" else np.float32)
    paths = []
    for photometric in (0, 1):
        path = tmp_path / f"{photometric}.tif"
        info = TiffImagePlugin.ImageFileDirectory_v2()
        info[262] = photometric
        Image.fromarray(pixels).save(path, tiffinfo=info)
        paths.append(path)
    with Image.open(paths[0]) as written:
        assert written.tag_v2[262] == 0
    np.testing.assert_array_equal(_read(paths[0]), 255 - _read(paths[1]))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_orientation_of_an_uncompressed_tiff(tmp_path, dtype, orientation):
    pixels = _random(40, 60, dtype=dtype)
    exif = Image.Exif()
    exif[0x0112] = orientation
    plain, packed = tmp_path / "plain.tif", tmp_path / "packed.tif"
    Image.fromarray(pixels).save(plain, exif=exif)
    Image.fromarray(pixels).save(packed, exif=exif, compression="tiff_lzw")
    np.testing.assert_array_equal(_read(plain), _read(packed))


def test_dicom_is_found_whatever_its_suffix(tmp_path):
    for name in ("1.2.3.IMA", "slice.ima", "x.v2"):
        (tmp_path / name).write_bytes(b"\0" * 128 + b"DICM")
    (tmp_path / "notes.txt").write_text("no image at all, only some text")
    assert [path.name for path in find_images(tmp_path)] == ["1.2.3.IMA", "slice.ima", "x.v2"]


def test_linked_folders_are_looked_into_and_links_that_lead_back_are_not(tmp_path):
    for name in ("elsewhere", "images/deep"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "a.png").write_bytes(b"the content is not looked at")
    (tmp_path / "images" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "images" / "deep" / "back").symlink_to(tmp_path / "images")
    found = [path.relative_to(tmp_path / "images").as_posix() for path in find_images(tmp_path / "images")]
    assert found == ["deep/a.png", "linked/a.png"]


def test_a_pipe_is_refused_instead_of_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"a\.png: is not a file that holds an image"):
        read_image(tmp_path / "a.png", channels=1)
    os.mkfifo(tmp_path / "without_suffix")
    assert find_images(tmp_path) == [tmp_path / "a.png"]
