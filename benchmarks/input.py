"""Images per second out of the data module alone, against PyTorch's ImageFolder: `python benchmarks/input.py --help`.

Both read the same files, shrink them to the same size, have the same workers, and change training images in the same
ways. medxfer decodes each file once into its store: `first epoch` is that and one epoch, `opening` the verification of
the store that each later run begins with, and the rest what its loader gives from then on. Contestants take turns;
medians over the rounds, and their ratios to ImageFolder.
"""

import argparse
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from machine import describe
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

from medxfer.data.augment import build_augmentation
from medxfer.data.collection import CHANNELS
from medxfer.data.datamodule import PictureDataModule, cores
from medxfer.data.decoding import Settings
from medxfer.data.phantoms import write_lesion_phantoms, write_xray_phantoms
from medxfer.data.reading import find_images, read_image
from medxfer.data.store import PixelStore, build_store

SOURCES = {"1024² PNG, grey": ("png", "xray"), "full-size JPEG, colour": ("jpeg", "dermoscopy")}
"""Title → option and modality."""

DIFFERENT = 6
"""Synthetic pictures that are painted; files repeat them."""

PASSES = 40
"""Epochs of the store that are measured as one: a single one would be over at once."""

Rates = dict[str, list[float]]
"""Contestant → images per second of each round."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="more images and rounds")
    parser.add_argument("--png", type=Path, help="folder of real PNG files (default: synthetic X-rays)")
    parser.add_argument("--jpeg", type=Path, help="folder of real JPEG files (default: synthetic lesions)")
    parser.add_argument("--images", type=int, help="files of each source (default: 96, with --full 400)")
    parser.add_argument("--rounds", type=int, help="turns of each contestant (default: 3, with --full 7)")
    parser.add_argument("--size-px", type=int, default=299, help="side of the pictures (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=16, help="images per batch (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=cores(), help="loader processes (default: %(default)s)")
    asked = parser.parse_args(arguments)
    asked.images = asked.images or (400 if asked.full else 96)
    asked.rounds = asked.rounds or (7 if asked.full else 3)
    print(describe())
    print(
        f"{asked.size_px} px, batch {asked.batch_size}, {asked.workers} workers, {asked.images} files, "
        f"{asked.rounds} rounds\n\n{'source':<24}{'contestant':<34}{'img/s':>9}{'range':>18}{'to ImageFolder':>16}"
    )
    for title, (kind, modality) in SOURCES.items():
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            write_source(folder / "files", kind, real=getattr(asked, kind), images=asked.images)
            rates = measure(folder, modality, asked)
        print("\n".join(lines(title, rates)), flush=True)
    return 0


def write_source(folder: Path, kind: str, *, real: Path | None, images: int) -> None:
    """Write two class folders of so many files, which repeat a few pictures but differ in content."""
    suffixes = {"png": (".png",), "jpeg": (".jpg", ".jpeg")}[kind]
    (folder / "originals").mkdir(parents=True)
    if real is not None:
        originals = [file for file in find_images(real) if file.suffix.lower() in suffixes]
    else:
        originals = paint(folder / "originals", kind)
    contents = [file.read_bytes() for file in originals]
    shutil.rmtree(folder / "originals")
    for number in range(images):
        place = folder / f"class_{number % 2}"
        place.mkdir(exist_ok=True)
        # What follows the picture is not looked at, but the store knows files by their content.
        content = contents[number % len(contents)] + f"file {number}".encode()
        (place / f"{number:04d}{suffixes[0]}").write_bytes(content)


def paint(folder: Path, kind: str) -> list[Path]:
    """Write a few synthetic pictures: grey PNG of 1024 pixels, or colour JPEG of about 2,600 by 2,000."""
    if kind == "jpeg":
        table = write_lesion_phantoms(folder / "raw", images=DIFFERENT, size_px=2400)
        return [table.parent / path for path in pd.read_csv(table)["path"]]
    table = write_xray_phantoms(folder / "raw", patients=DIFFERENT, size_px=1024, max_images_per_patient=1)
    files = []
    for number, path in enumerate(pd.read_csv(table)["path"]):
        film = Image.fromarray(read_image(table.parent / path, channels=1)[..., 0])
        files.append(folder / f"{number}.png")
        film.resize((1024, 1024)).save(files[-1])
    return files


def measure(folder: Path, modality: str, asked: argparse.Namespace) -> Rates:
    """Let the contestants take turns."""
    rates: Rates = {}
    for number in range(asked.rounds):
        for name, rate in one_round(folder, modality, asked, store=folder / f"store-{number}"):
            rates.setdefault(name, []).append(rate)
    return rates


def one_round(folder: Path, modality: str, asked: argparse.Namespace, store: Path) -> Iterator[tuple[str, float]]:
    """Measure each contestant once."""
    files = find_images(folder / "files")
    settings = Settings(CHANNELS[modality], asked.size_px, "stretch")

    def opened() -> PixelStore:
        return build_store(
            files, folder=store, settings=settings, on_unreadable="error", workers=asked.workers, progress=False
        )[0]

    def epoch(pictures: PixelStore, augment: bool, passes: int = PASSES, workers: int = asked.workers) -> float:
        feed = PictureDataModule(
            pictures=Repeated(pictures),
            targets=np.zeros(passes * len(pictures), dtype=np.int64),
            splits=np.full(passes * len(pictures), "train"),
            batch_size=asked.batch_size,
            workers=workers,
            augment=build_augmentation(modality, 1.0) if augment else None,
        )
        return images_per_second(feed.train_dataloader(), lambda batch: len(batch["row"]))

    yield "ImageFolder", image_folder(folder / "files", modality, asked, augment=False)
    yield "ImageFolder, augmented", image_folder(folder / "files", modality, asked, augment=True)
    start = time.perf_counter()
    pictures = opened()
    decoded = time.perf_counter() - start
    yield "medxfer, first epoch, augmented", len(files) / (decoded + len(files) / epoch(pictures, True, passes=1))
    start = time.perf_counter()
    pictures = opened()
    yield "medxfer, opening the store", len(files) / (time.perf_counter() - start)
    yield "medxfer, store", epoch(pictures, False)
    yield "medxfer, store, augmented", epoch(pictures, True)
    yield "medxfer, store, augmented, no worker", epoch(pictures, True, workers=0)


class Repeated:
    """The pictures of a store, over and over."""

    def __init__(self, pictures: PixelStore) -> None:
        self.pictures = pictures

    def __getitem__(self, row: int) -> np.ndarray:
        return self.pictures[row % len(self.pictures)]


def image_folder(folder: Path, modality: str, asked: argparse.Namespace, *, augment: bool) -> float:
    """Measure torchvision's ImageFolder with the transforms that people write."""
    steps: list[Callable] = [transforms.Resize((asked.size_px, asked.size_px))]
    if augment and modality == "xray":
        steps += [
            transforms.RandomAffine(7, translate=(0.04, 0.04), scale=(0.92, 1.08)),
            transforms.ColorJitter(brightness=0.12, contrast=0.15),
        ]
    elif augment:
        steps += [
            transforms.RandomHorizontalFlip(),
            transforms.RandomVerticalFlip(),
            transforms.RandomAffine(180, scale=(0.9, 1.2)),
            transforms.ColorJitter(brightness=0.12, contrast=0.12, saturation=0.12, hue=0.015),
        ]
    steps += [transforms.ToTensor(), transforms.Normalize([0.5] * 3, [0.5] * 3)]
    loader = DataLoader(
        ImageFolder(folder, transforms.Compose(steps)),
        batch_size=asked.batch_size,
        shuffle=True,
        num_workers=asked.workers,
        persistent_workers=asked.workers > 0,
    )
    return images_per_second(loader, lambda batch: len(batch[1]))


def images_per_second(loader: Iterable, size: Callable[..., int]) -> float:
    """Measure one epoch; the workers were started before."""
    beginning = iter(loader)
    next(beginning)
    del beginning
    start = time.perf_counter()
    images = sum(size(batch) for batch in loader)
    return images / (time.perf_counter() - start)


def lines(title: str, rates: Rates) -> Iterator[str]:
    """Write a line per contestant."""
    for name, each in rates.items():
        base = rates["ImageFolder, augmented" if "augmented" in name else "ImageFolder"]
        ratio = statistics.median(one / other for one, other in zip(each, base, strict=True))
        shown = "" if "opening" in name else f"{ratio:.2f}"
        spread = f"{min(each):,.0f} to {max(each):,.0f}"
        yield f"{title:<24}{name:<36}{statistics.median(each):>7,.0f}{spread:>18}{shown:>16}"


if __name__ == "__main__":
    sys.exit(main())
