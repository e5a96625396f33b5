"""Read mutated image files and count what happens: `make fuzz`, or `python benchmarks/fuzz.py --files 10000`.

Every file must give a picture or a DataError of one line, within a second of processor time, and the program must go on
whatever a decoder does. Exit code 1 if one of these does not hold; the files that broke it are kept.
"""

import argparse
import functools
import io
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import imagecodecs
import numpy as np
import pydicom
from PIL import Image
from pydicom.encaps import encapsulate
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)
from tqdm import tqdm

from medxfer.data.dicom_files import write_dicom
from medxfer.data.isolation import Limits, isolated
from medxfer.data.reading import read_image
from medxfer.errors import DataError

SECONDS = 1.0
MAX_PIXELS = 4_000_000
"""A header that a mutation made larger than this is refused, as one of a real bomb is."""

SIZES = (0, 1, 2, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF)
"""Numbers that break assumptions about lengths."""


@dataclass(frozen=True)
class Outcome:
    """What one mutated file led to."""

    kind: str
    result: str
    seconds: float = 0.0


def write_seeds(folder: Path) -> list[Path]:
    """Write one sound file of every format and encoding that medxfer reads."""
    rng = np.random.default_rng(0)
    grey = np.uint8(np.add.outer(np.arange(64), np.arange(80)) + rng.integers(0, 20, (64, 80)))
    colour = np.stack([grey, grey[::-1], 255 - grey], axis=2)
    deep = grey.astype(np.uint16) * 16
    pictures: dict[str, tuple[np.ndarray, str | None, dict]] = {
        "grey.png": (grey, None, {}), "colour.png": (colour, None, {}), "deep.png": (deep, None, {}),
        "palette.png": (grey, "P", {}), "alpha.png": (colour, "RGBA", {}), "bit.png": (grey, "1", {}),
        "grey.jpg": (grey, None, {}), "colour.jpg": (colour, None, {"quality": 85}), "cmyk.jpg": (colour, "CMYK", {}),
        "progressive.jpg": (colour, None, {"progressive": True}),
        "plain.tif": (grey, None, {}), "deep.tif": (deep, None, {}),
        "lzw.tif": (colour, None, {"compression": "tiff_lzw"}),
        "deflate.tif": (colour, None, {"compression": "tiff_adobe_deflate"}),
        "jpeg.tif": (colour, None, {"compression": "jpeg"}), "fax.tif": (grey, "1", {"compression": "group4"}),
        "grey.bmp": (grey, None, {}), "colour.bmp": (colour, None, {}),
        "lossy.webp": (colour, None, {}), "lossless.webp": (colour, None, {"lossless": True}),
    }  # fmt: skip
    files = []
    for name, (pixels, mode, options) in pictures.items():
        picture = Image.fromarray(pixels)
        exif = Image.Exif()
        exif[0x0112] = 6
        (picture.convert(mode) if mode else picture).save(folder / name, exif=exif, **options)
        files.append(folder / name)
    return [*files, *_write_dicom_seeds(folder, deep, grey)]


def _write_dicom_seeds(folder: Path, deep: np.ndarray, grey: np.ndarray) -> list[Path]:
    files = [folder / "explicit.dcm"]
    write_dicom(files[0], deep, patient_id="p", photometric="MONOCHROME1", window=(2000, 3000))
    for name, syntax in (
        ("implicit", ImplicitVRLittleEndian), ("big_endian", ExplicitVRBigEndian),
        ("deflated", DeflatedExplicitVRLittleEndian),
    ):  # fmt: skip
        dataset = pydicom.dcmread(files[0])
        if syntax == ExplicitVRBigEndian:
            dataset.PixelData = deep.astype(">u2").tobytes()
        dataset.file_meta.TransferSyntaxUID = syntax
        files.append(folder / f"{name}.dcm")
        pydicom.dcmwrite(
            files[-1], dataset, implicit_vr=syntax.is_implicit_VR, little_endian=syntax.is_little_endian,
            force_encoding=True,
        )  # fmt: skip
    for name, syntax in (("rle", RLELossless), ("jpegls", JPEGLSLossless), ("j2k", JPEG2000Lossless)):
        dataset = pydicom.dcmread(files[0])
        dataset.compress(syntax)
        files.append(folder / f"{name}.dcm")
        dataset.save_as(files[-1])
    baseline = io.BytesIO()
    Image.fromarray(grey).save(baseline, "JPEG", quality=90)
    streams: tuple[tuple[str, pydicom.uid.UID, bytes, int], ...] = (
        ("baseline", JPEGBaseline8Bit, baseline.getvalue(), 8),
        ("lossless", JPEGLosslessSV1, imagecodecs.ljpeg_encode(deep, bitspersample=12), 16),
        ("extended", JPEGExtended12Bit, imagecodecs.jpeg8_encode(deep, level=95, bitspersample=12), 16),
    )
    for name, syntax, stream, bits in streams:
        dataset = pydicom.dcmread(files[0])
        dataset.file_meta.TransferSyntaxUID = syntax
        dataset.BitsAllocated, dataset.BitsStored = bits, min(bits, 12)
        dataset.HighBit = dataset.BitsStored - 1
        dataset.PixelData = encapsulate([stream])
        dataset["PixelData"].VR = "OB"
        files.append(folder / f"{name}.dcm")
        dataset.save_as(files[-1])
    return files


def mutate(content: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    """Damage a file in one to three ways."""
    for _ in range(int(rng.integers(1, 4))):
        content = MUTATIONS[int(rng.integers(len(MUTATIONS)))](content, other, rng)
    return content


def _flip(content: bytes, _: bytes, rng: np.random.Generator) -> bytes:
    changed = np.frombuffer(content, np.uint8).copy()
    if len(changed):
        places = rng.integers(len(changed), size=int(rng.integers(1, 12)))
        changed[places] ^= (1 << rng.integers(8, size=len(places))).astype(np.uint8)
    return changed.tobytes()


def _number(content: bytes, _: bytes, rng: np.random.Generator) -> bytes:
    """Write a number that breaks assumptions, more often near the beginning, where headers are."""
    value = int(SIZES[int(rng.integers(len(SIZES)))])
    width = int(rng.choice([1, 2, 4]))
    written = (value & (256**width - 1)).to_bytes(width, "little" if rng.random() < 0.5 else "big")
    place = int(rng.integers(max(1, len(content) if rng.random() < 0.5 else min(len(content), 600))))
    return content[:place] + written + content[place + width :]


def _truncate(content: bytes, _: bytes, rng: np.random.Generator) -> bytes:
    return content[: int(rng.integers(len(content) + 1))]


def _remove(content: bytes, _: bytes, rng: np.random.Generator) -> bytes:
    start = int(rng.integers(len(content) + 1))
    return content[:start] + content[start + int(rng.integers(1, 200)) :]


def _repeat(content: bytes, _: bytes, rng: np.random.Generator) -> bytes:
    start = int(rng.integers(len(content) + 1))
    return (
        content[:start]
        + content[start : start + int(rng.integers(1, 400))] * int(rng.integers(2, 30))
        + content[start:]
    )


def _noise(content: bytes, _: bytes, rng: np.random.Generator) -> bytes:
    start = int(rng.integers(len(content) + 1))
    noise = rng.bytes(int(rng.integers(1, 100)))
    return content[:start] + noise + content[start + len(noise) * int(rng.integers(2)) :]


def _splice(content: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    return content[: int(rng.integers(len(content) + 1))] + other[int(rng.integers(len(other) + 1)) :]


MUTATIONS: tuple[Callable[[bytes, bytes, np.random.Generator], bytes], ...] = (
    _flip, _flip, _number, _number, _truncate, _remove, _repeat, _noise, _splice,
)  # fmt: skip


def mutated(number: int, seeds: list[Path]) -> tuple[Path, bytes]:
    """Return a seed and its mutation of that number; the same each time."""
    rng = np.random.default_rng((2026, number))
    seed = seeds[number % len(seeds)]
    other = seeds[int(rng.integers(len(seeds)))]
    return seed, mutate(seed.read_bytes(), other.read_bytes(), rng)


def read_one(number: int, seeds: list[Path]) -> Outcome:
    """Write one mutated file, read it, and say what happened."""
    seed, content = mutated(number, seeds)
    kind = seed.suffix[1:]
    with tempfile.NamedTemporaryFile(suffix=seed.suffix) as file:
        file.write(content)
        file.flush()
        start = time.process_time()
        try:
            image = read_image(Path(file.name), channels=1 + 2 * (number % 2), max_pixels=MAX_PIXELS)
            result = "read" if image.dtype == np.uint8 and image.ndim == 3 else "wrong picture"
        except DataError as error:
            result = "refused" if "\n" not in str(error) else "several lines"
        except BaseException as error:
            result = f"untyped: {type(error).__name__}"
        return Outcome(kind, result, time.process_time() - start)


def _lost(number: int, seeds: list[Path]) -> Outcome:
    return Outcome(seeds[number % len(seeds)].suffix[1:], "ended its process")


def main() -> int:
    """Run and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0, help="number of the first mutation")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--keep", type=Path, default=Path("runs/fuzz"), help="where files that broke a rule are kept")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        seeds = write_seeds(Path(name))
        sound = [read_one_seed(seed) for seed in seeds]
        numbers = range(asked.first, asked.first + asked.files)
        outcomes = list(
            tqdm(
                isolated(
                    functools.partial(read_one, seeds=seeds), list(numbers), lost=functools.partial(_lost, seeds=seeds),
                    workers=asked.workers, limits=Limits(memory_mb=4096, seconds=20),
                ),
                total=len(numbers), disable=None, leave=False,
            )
        )  # fmt: skip
        kinds = sorted({outcome.kind for outcome in outcomes})
        columns = ("files", 8), ("read", 8), ("refused", 9), ("ended their process", 21), ("slowest (s)", 13)
        print("format  " + "".join(name.rjust(width) for name, width in columns) + "  broke a rule")
        broken = 0
        for kind in kinds:
            mine = [outcome for outcome in outcomes if outcome.kind == kind]
            counts = Counter(outcome.result for outcome in mine)
            bad = {name: n for name, n in counts.items() if name not in ("read", "refused", "ended its process")}
            slow = sum(outcome.seconds > SECONDS for outcome in mine)
            bad.update({"slow": slow} if slow else {})
            broken += sum(bad.values())
            print(
                f"{kind:<8}{len(mine):>8}{counts['read']:>8}{counts['refused']:>9}{counts['ended its process']:>21}"
                f"{max(outcome.seconds for outcome in mine):>13.3f}  {bad or 'none'}"
            )
        for number, outcome in zip(numbers, outcomes, strict=True):
            if outcome.result not in ("read", "refused") or outcome.seconds > SECONDS:
                asked.keep.mkdir(parents=True, exist_ok=True)
                (asked.keep / f"{number}.{outcome.kind}").write_bytes(mutated(number, seeds)[1])
    print(
        f"{len(seeds)} sound files, of which {sum(sound)} were read; {len(outcomes)} mutations; rules broken: {broken}"
    )
    return int(broken > 0 or not all(sound))


def read_one_seed(seed: Path) -> bool:
    """Return whether a sound file is read: what is mutated must work as it is."""
    try:
        return read_image(seed, channels=3, max_pixels=MAX_PIXELS).size > 0
    except DataError as error:
        print(error, file=sys.stderr)
        return False


if __name__ == "__main__":
    sys.exit(main())
