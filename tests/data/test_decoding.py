"""One file to one fitted picture and its facts, here or in processes that may end."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medxfer.data import decoding
from medxfer.data.decoding import Decoded, Settings, decode_file, decode_files
from medxfer.data.dicom_files import write_dicom
from medxfer.data.fitting import fit_image
from medxfer.data.reading import Picture, read_image, read_picture
from tests.data.test_dicom_files import dataset_of, saved

SETTINGS = Settings(channels=1, size_px=24, fit="pad")


def _grey(height: int = 30, width: int = 20, seed: int = 0) -> np.ndarray:
    """Return a picture without black pixels, so that what is black in a fitted one is padding."""
    return np.random.default_rng(seed).integers(1, 256, (height, width), dtype=np.uint8)


def _written(folder: Path, name: str, pixels: np.ndarray) -> Path:
    path = folder / name
    if path.suffix == ".dcm":  # the window leaves numbers of 8 bits as they are
        return saved(path, dataset_of(pixels, WindowCenter=127.5, WindowWidth=255, VOILUTFunction="LINEAR_EXACT"))
    Image.fromarray(pixels).save(path, **({"lossless": True} if path.suffix == ".webp" else {}))
    return path


def _pixels(path: Path, settings: Settings = SETTINGS) -> str:
    decoded = decode_file(path, settings)
    assert decoded.facts is not None
    return decoded.facts.pixels


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.tif", "a.webp", "a.dcm"])
def test_one_picture_has_one_digest_in_whatever_file(tmp_path, name, channels):
    settings = Settings(channels=channels, size_px=24, fit="pad")
    grey, changed = _grey(), _grey()
    changed[17, 3] ^= 1
    path = _written(tmp_path, name, grey)
    other = _written(tmp_path, f"other{path.suffix}", changed)
    as_png = _written(tmp_path, "reference.png", grey)
    as_colours = _written(tmp_path, "colours.png", np.stack(3 * [grey], axis=-1))
    assert _pixels(path, settings) == _pixels(as_png, settings) == _pixels(as_colours, settings)
    assert _pixels(path, settings) != _pixels(other, settings)


def test_one_picture_of_16_bits_has_one_digest_too(tmp_path):
    film = _grey().astype(np.uint16) * 16
    Image.fromarray(film).save(tmp_path / "a.png")
    Image.fromarray(film).save(tmp_path / "a.tif")
    write_dicom(tmp_path / "a.dcm", film, patient_id="P")
    assert len({_pixels(tmp_path / f"a.{suffix}") for suffix in ("png", "tif", "dcm")}) == 1


def test_the_same_bytes_in_another_shape_are_another_picture(tmp_path):
    tall, wide = (_written(tmp_path, f"{side}.png", np.full((side, 60 // side), 9, np.uint8)) for side in (10, 6))
    assert _pixels(tall) != _pixels(wide)


def test_the_digest_is_of_the_picture_before_it_is_fitted(tmp_path):
    path = _written(tmp_path, "a.png", _grey())
    digests = {_pixels(path, Settings(1, size, fit)) for size in (8, 24) for fit in ("pad", "crop", "stretch")}
    assert len(digests) == 1


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("fit", ["pad", "crop", "stretch"])
@pytest.mark.parametrize(("height", "width"), [(30, 20), (20, 30), (24, 24), (1, 3000), (3000, 1)])
def test_the_picture_is_read_and_fitted_and_its_box_is_what_is_not_padding(tmp_path, height, width, fit, channels):
    path = _written(tmp_path, "a.png", _grey(height, width))
    decoded = decode_file(path, Settings(channels, 24, fit))
    assert decoded.reason == ""
    assert decoded.image is not None
    assert decoded.facts is not None
    np.testing.assert_array_equal(decoded.image, fit_image(read_image(path, channels=channels), size_px=24, fit=fit))
    rows, columns = decoded.image.any(axis=(1, 2)).nonzero()[0], decoded.image.any(axis=(0, 2)).nonzero()[0]
    assert decoded.facts.box == (rows[0], rows[-1] + 1, columns[0], columns[-1] + 1)
    assert (decoded.facts.height, decoded.facts.width) == (height, width)
    assert decoded.digest == hashlib.sha256(path.read_bytes()).hexdigest()


def test_facts_say_how_a_file_stores_its_picture(tmp_path):
    colours = np.random.default_rng(0).integers(0, 256, (30, 20, 3), dtype=np.uint8)
    Image.fromarray(colours).save(tmp_path / "a.jpg")
    Image.fromarray(_grey().astype(np.uint16) * 16).save(tmp_path / "a.tif")
    write_dicom(tmp_path / "a.dcm", _grey().astype(np.uint16), patient_id="P", photometric="MONOCHROME1")
    saved(tmp_path / "b.dcm", dataset_of(_grey(), Modality="DX", ViewPosition="PA"))
    found = {}
    for name in ("a.jpg", "a.tif", "a.dcm", "b.dcm"):
        facts = decode_file(tmp_path / name, SETTINGS).facts
        assert facts is not None
        found[name] = (facts.format, facts.mode, facts.modality, facts.view)
    assert found == {
        "a.jpg": ("JPEG", "RGB", "", ""),
        "a.tif": ("TIFF", "I;16", "", ""),
        "a.dcm": ("DICOM", "MONOCHROME1 12", "CR", ""),
        "b.dcm": ("DICOM", "MONOCHROME2 8", "DX", "PA"),
    }


def test_a_turned_picture_is_as_high_as_it_is_shown(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(_grey(30, 20)).save(tmp_path / "a.jpg", exif=exif)
    facts = decode_file(tmp_path / "a.jpg", SETTINGS).facts
    assert facts is not None
    assert (facts.height, facts.width) == (20, 30)


def _nothing(path: Path) -> None:
    path.write_bytes(b"")


def _text(path: Path) -> None:
    path.write_text("no image")


def _half(path: Path) -> None:
    path.write_bytes(_written(path.parent, "whole.png", _grey()).read_bytes()[:300])


def _no_picture(path: Path) -> None:
    path.write_bytes(bytes(128) + b"DICM")


def _huge(path: Path) -> None:
    Image.fromarray(_grey(200, 200)).save(path)


def _folder(path: Path) -> None:
    path.mkdir()


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (_nothing, "is empty"),
        (_text, "is not a PNG"),
        (_half, "is damaged"),
        (_no_picture, "is a DICOM file without a picture"),
        (_huge, "has 200 × 200 pixels, more than the 10,000 that are allowed"),
        (_folder, "Is a directory"),
        (lambda _: None, "No such file or directory"),
    ],
)
def test_what_cannot_be_read_gives_a_reason_and_no_exception(tmp_path, make: Callable[[Path], None], reason):
    path = tmp_path / "a.png"
    make(path)
    decoded = decode_file(path, Settings(1, 24, "pad", max_pixels=10_000))
    assert decoded.reason.startswith(reason)
    assert str(path) not in decoded.reason
    assert (decoded.image, decoded.facts) == (None, None)
    assert decoded.digest == (hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else decoding.NO_DIGEST)


@pytest.mark.parametrize("frame", [None, "first", "middle"])
def test_the_frame_is_chosen_by_the_settings(tmp_path, frame):
    pages = [Image.new("L", (8, 8), 10 + page) for page in range(3)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    decoded = decode_file(tmp_path / "a.tif", Settings(1, 8, "pad", frame=frame))
    if frame is None:
        assert "--data.frame first" in decoded.reason
    else:
        assert decoded.image is not None
        assert (decoded.image == {"first": 10, "middle": 11}[frame]).all()


def test_a_file_that_changes_while_it_is_read_is_told(tmp_path, monkeypatch):
    """Otherwise its picture would be kept under the digest of another."""
    path = _written(tmp_path, "a.png", _grey())

    def replacing(file: Path, **options: object) -> Picture:
        _written(tmp_path, "a.png", _grey(40, 40, seed=1))
        return read_picture(file, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(decoding, "read_picture", replacing)
    decoded = decode_file(path, SETTINGS)
    assert decoded.image is None
    assert decoded.reason == "changed while it was read"


def _files(folder: Path, count: int) -> list[Path]:
    return [_written(folder, f"{number}.png", _grey(seed=number)) for number in range(count)]


@pytest.mark.parametrize("workers", [0, 2])
def test_many_files_are_decoded_in_order_as_one_by_one(tmp_path, workers):
    files = _files(tmp_path, 30)
    files[4].write_bytes(b"no image")
    files[20].unlink()
    found = list(decode_files(files, SETTINGS, workers=workers))
    assert [number for number, decoded in enumerate(found) if decoded.image is None] == [4, 20]
    for decoded, file in zip(found, files, strict=True):
        expected = decode_file(file, SETTINGS)
        assert (decoded.digest, decoded.facts, decoded.reason) == (expected.digest, expected.facts, expected.reason)
        np.testing.assert_array_equal(decoded.image, expected.image)


def _aborting(file: Path, settings: Settings) -> Decoded:
    """Stand for a decoder that aborts."""
    if file.name == "5.png":
        os.abort()
    return decode_file(file, settings)


def test_a_file_that_ends_its_decoder_is_named_and_the_others_are_decoded(tmp_path, monkeypatch):
    files = _files(tmp_path, 10)
    monkeypatch.setattr(decoding, "decode_file", _aborting)
    found = list(decode_files(files, SETTINGS, workers=1))
    assert found[5].reason == "is damaged: its decoder crashed, took too long or too much memory"
    assert found[5].image is None
    assert [decoded.digest for decoded in found] == [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
    for number in (0, 4, 6, 9):
        np.testing.assert_array_equal(found[number].image, decode_file(files[number], SETTINGS).image)


def test_larger_pictures_may_take_more_memory(monkeypatch):
    asked = []
    monkeypatch.setattr(decoding, "isolated", lambda *_, limits, **__: asked.append(limits.memory_mb))
    for max_pixels in (10**6, 10**9):
        decode_files([], Settings(1, 24, "pad", max_pixels=max_pixels), workers=1)
    assert asked[0] < 5000 < 30_000 < asked[1]


def test_processes_that_began_in_another_folder_find_relative_files(tmp_path, monkeypatch):
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        _written(tmp_path / name, f"{name}.png", _grey())
        monkeypatch.chdir(tmp_path / name)
        (found,) = decode_files([Path(f"{name}.png")], SETTINGS, workers=1)
        assert found.image is not None
