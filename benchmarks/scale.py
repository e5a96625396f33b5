"""How time and memory of everything but the network grow with the images: `python benchmarks/scale.py --help`.

Each size is a table of as many names, in a process of its own. Up to a thousand are pictures of their own, X-ray
phantoms or the images of `--data`; all others repeat their pixels in files of another content, under new names and
patients. Such copies are known by their pixels, so the search for near-duplicates is measured once more on as many
different pictures, of which one in a hundred is a changed copy of another.

Memory is what a process has of its own; mapped files, which the system takes back when it needs to, do not count.
"""

import argparse
import csv
import functools
import json
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import psutil
import torch
from machine import describe
from memory import PeakMemory
from near_duplicates import several

from medxfer.check import write_audit
from medxfer.config import DataConfig
from medxfer.data.augment import build_augmentation
from medxfer.data.collection import CHANNELS, Collection
from medxfer.data.datamodule import PictureDataModule, cores
from medxfer.data.decoding import Settings
from medxfer.data.duplicates import find_duplicates
from medxfer.data.files import FileStream, collate_files
from medxfer.data.fitting import content_box, fit_image
from medxfer.data.isolation import isolated
from medxfer.data.manifest import Manifest, joined, read_manifest
from medxfer.data.near_duplicates import find_near_duplicates
from medxfer.data.phantoms import write_xray_phantoms
from medxfer.data.splits import split_by_group
from medxfer.data.store import build_store
from medxfer.evaluation.evidence import summarise, write_metrics
from medxfer.evaluation.metrics import build_epoch_metrics, youden_thresholds
from medxfer.evaluation.plots import write_figures
from medxfer.evaluation.predictions import Predictions, write_predictions
from medxfer.results import audit_collection

DIFFERENT = 1000
"""Pictures of their own."""

PHANTOM_PX, COPIED_PX = 96, 384
"""Sides of synthetic films, and of those that are changed."""

COPIES = 100
"""One in so many of the different pictures is a changed copy."""

Row = dict[str, float]
"""seconds; cpu_s: of all cores together; mb: most memory beyond what the process began with; worker_mb: of its largest
worker; and what else a part gives."""


def main() -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", help="numbers of images (default: 1000,10000, with --full also 100000)")
    parser.add_argument("--full", action="store_true", help="up to 100,000 images: an hour or two")
    parser.add_argument("--data", type=Path, help="table of real images (default: synthetic X-rays)")
    parser.add_argument("--modality", default="xray", choices=list(CHANNELS), help="of --data (default: %(default)s)")
    parser.add_argument("--size-px", type=int, default=96, help="side of the stored pictures (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=cores(), help="processes or threads (default: %(default)s)")
    parser.add_argument("--folder", type=Path, help="where files and stores lie meanwhile (default: a temporary one)")
    parser.add_argument("--only", choices=["program", "search"], help="one of the two tables")
    parser.add_argument("--part", help=argparse.SUPPRESS)  # of the script itself, in a process of its own
    asked = parser.parse_args()
    if asked.part:
        kind, _, size = asked.part.partition(":")
        rows = list((program if kind == "program" else search)(asked, int(size)))
        print(json.dumps(rows))
        return 0
    sizes = [int(size) for size in (asked.sizes or ("1000,10000,100000" if asked.full else "1000,10000")).split(",")]
    with tempfile.TemporaryDirectory(dir=asked.folder) as folder:
        asked.folder = Path(folder)
        print(describe())
        if asked.only != "search":
            write_collection(asked, max(sizes))
            what = f"the pixels of {asked.data or 'synthetic X-rays'}" + (
                f", {DIFFERENT} at most" if asked.data else ""
            )
            print(f"\nnames over {what}; {asked.size_px} px, {asked.workers} workers")
            print("\n".join(table(sizes, [run(asked, "program", size) for size in sizes])))
        if asked.only != "program":
            print(f"\nnear-duplicates among different pictures, {asked.workers} threads")
            print("\n".join(table(sizes, [run(asked, "search", size) for size in sizes])))
    return 0


def run(asked: argparse.Namespace, kind: str, size: int) -> dict[str, Row]:
    """Measure one size in a new process."""
    given = {"folder": asked.folder, "size-px": asked.size_px, "workers": asked.workers, "modality": asked.modality}
    command = [sys.executable, __file__, f"--part={kind}:{size}", *(f"--{key}={value}" for key, value in given.items())]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def table(sizes: Sequence[int], measured: Sequence[dict[str, Row]]) -> Iterator[str]:
    """Write a line per part: seconds, seconds of CPU and how they grow, and memory, of each size."""
    width, each = 9 * len(sizes), "".join(f"{f'{size / 1000:g}k':>9}" for size in sizes)
    yield f"{'':<34}{'seconds':>{width}}{'CPU seconds':>{width}}{'':>11}{'MB':>{width}}{'bytes':>10}{'MB of a':>9}"
    yield f"{'images':<34}{each}{each}{'growth':>11}{each}{'an image':>10}{'worker':>9}"
    for part in measured[-1]:
        rows = [one[part] for one in measured]
        seconds, cpu_s, mb = (
            "".join(f"{row[name]:>9.{digits}f}" for row in rows)
            for name, digits in (("seconds", 2), ("cpu_s", 2), ("mb", 0))
        )
        more = (rows[-1]["mb"] - rows[-2]["mb"]) * 2**20 / (sizes[-1] - sizes[-2]) if len(rows) > 1 else 0
        workers = f"{rows[-1]['worker_mb']:.0f}" if rows[-1]["worker_mb"] else ""
        yield f"{part:<34}{seconds}{cpu_s}{growth(sizes, rows):>11}{mb}{more:>10.0f}{workers:>9}"
        for name in [name for name in rows[-1] if name not in ("seconds", "cpu_s", "mb", "worker_mb")]:
            yield f"  {name:<32}" + "".join(f"{row[name]:>9.4g}" for row in rows)


def growth(sizes: Sequence[int], rows: Sequence[Row]) -> str:
    """Return the exponents by which the seconds of CPU grow from each size to the next; 1 is linear."""
    exponents = np.diff(np.log([max(row["cpu_s"], 1e-4) for row in rows])) / np.diff(np.log(sizes))
    return " ".join(f"{exponent:.2f}" for exponent in exponents)


class Measured:
    """Collects a row per part of the program; memory is that beyond what the process began with."""

    def __init__(self) -> None:
        self.rows: dict[str, Row] = {}
        with PeakMemory() as memory:
            self._began_mb = memory.own_mb

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Measure what happens inside."""
        with PeakMemory() as memory:
            start, cpu = time.perf_counter(), cpu_seconds()
            yield
            seconds, cpu = time.perf_counter() - start, cpu_seconds() - cpu
        more = memory.own_mb - self._began_mb
        self.rows[name] = {"seconds": seconds, "cpu_s": cpu, "mb": more, "worker_mb": memory.child_mb}

    def finish(self) -> Iterator[tuple[str, Row]]:
        """Yield every part, and all of them together."""
        yield from self.rows.items()
        rows = self.rows.values()
        total = {name: sum(row[name] for row in rows) for name in ("seconds", "cpu_s")}
        yield "all", {**total, **{name: max(row[name] for row in rows) for name in ("mb", "worker_mb")}}


def cpu_seconds() -> float:
    """Return the CPU time of this process and of all that it started."""
    ended = os.times()
    times = [ended, *(child.cpu_times() for child in psutil.Process().children(recursive=True))]
    return ended.children_user + ended.children_system + sum(one.user + one.system for one in times)


def write_collection(asked: argparse.Namespace, size: int) -> None:
    """Write as many files and their table; the first rows are the originals."""
    if asked.data:
        table = pd.read_csv(asked.data, dtype=str).head(DIFFERENT)
        files = [asked.data.parent / path for path in table["path"]]
        patients = table["patient_id"] if "patient_id" in table else table["path"]
    else:
        source = write_xray_phantoms(asked.folder / "phantoms", patients=DIFFERENT, size_px=PHANTOM_PX)
        table = pd.read_csv(source, dtype=str).head(DIFFERENT)
        files = [source.parent / path for path in table["path"]]
        patients = table["patient_id"]
    (asked.folder / "images").mkdir()
    others = [name for name in ("age", "sex", "view") if name in table]
    with (asked.folder / "labels.csv").open("w", newline="", encoding="utf-8") as opened:
        writer = csv.writer(opened)
        writer.writerow(["path", "label", "patient_id", *others])
        contents = [file.read_bytes() for file in files]
        for number in range(size):
            again, row = divmod(number, len(files))
            path = f"images/{row:04d}_{again:04d}{files[row].suffix}"
            (asked.folder / path).write_bytes(contents[row] + (_ending(contents[row], again) if again else b""))
            cells = [table[name].iloc[row] for name in others]
            writer.writerow([path, table["label"].iloc[row], f"{patients.iloc[row]}_{again}", *cells])


def _ending(content: bytes, number: int) -> bytes:
    """Return what makes a file another one, but not its picture: bytes that no decoder looks at."""
    note = f"copy {number:08d} ".encode()
    is_dicom = content[128:132] == b"DICM"  # its padding has a tag, (FFFC,FFFC), and a length
    return b"\xfc\xff\xfc\xffOB\0\0" + struct.pack("<I", len(note)) + note if is_dicom else note


def program(asked: argparse.Namespace, size: int) -> Iterator[tuple[str, Row]]:
    """Run every part of the program but the network on the first rows of the collection."""
    place = asked.folder / f"of-{size}"
    place.mkdir()
    source = asked.folder / f"labels-{size}.csv"
    lines = (asked.folder / "labels.csv").read_text(encoding="utf-8").splitlines(keepends=True)
    source.write_text("".join(lines[: size + 1]), encoding="utf-8")
    del lines
    config = DataConfig(source=str(source), modality=asked.modality, image_size_px=asked.size_px)
    settings = Settings(CHANNELS[asked.modality], asked.size_px, "pad")
    build = functools.partial(
        build_store, folder=place, settings=settings, on_unreadable="error", workers=asked.workers, progress=False
    )
    measured = Measured()
    with measured.part("manifest"):
        manifest = read_manifest(source)
    with measured.part("store: decoding"):
        build(manifest.files)
    with measured.part("store: opened again"):
        pictures, skipped = build(manifest.files)
    with measured.part("copies (identical, near)"):
        copies = find_duplicates(pictures, near=True, folder=place, workers=asked.workers)
    split = functools.partial(
        split_by_group, manifest.targets, val_fraction=0.15, test_fraction=0.15, seed=0,
        class_names=manifest.class_names,
    )  # fmt: skip
    with measured.part("split by patient"):
        split(manifest.groups())
    with measured.part("split by patient, copies together"):
        splits = split(joined(manifest.groups(), copies.sets()))
    data = Collection(manifest, pictures, splits, skipped, copies)
    with measured.part("audit"):
        found = audit_collection(config, data, folder=place, seed=0)
    with measured.part("audit: page and JSON"):
        write_audit(place / "audit", found, data, title="labels.csv", seed=0)
    feed = PictureDataModule(
        pictures=pictures, targets=manifest.targets, splits=np.full(size, "train"), batch_size=32,
        augment=build_augmentation(asked.modality, 1.0),
    )  # fmt: skip
    for workers in (0, asked.workers):
        feed.workers = workers
        with measured.part(f"loader: an epoch, {workers} workers"):
            for _ in feed.train_dataloader():
                pass
    with measured.part("predict: decoding, in batches"):
        stream = FileStream(manifest.files, settings, workers=asked.workers)
        for _ in torch.utils.data.DataLoader(stream, batch_size=32, collate_fn=collate_files):
            pass
    yield from evaluate(measured, manifest, place)
    yield from measured.finish()
    shutil.rmtree(place)


def evaluate(measured: Measured, manifest: Manifest, place: Path) -> Iterator[tuple[str, Row]]:
    """Measure what follows the network on made-up probabilities of all images."""
    size = len(manifest)
    logits = np.random.default_rng(0).normal(size=(size, manifest.num_classes))
    logits[np.arange(size), manifest.targets] += 1
    probs = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    one = Predictions(
        manifest.paths, ["test"] * size, manifest.targets, probs, manifest.patients, manifest.class_names, manifest.task
    )
    with measured.part("predictions.csv"):
        write_predictions(place / "predictions.csv", [one])
    with measured.part("metrics of an epoch"):
        metrics = build_epoch_metrics(one.task)
        for start in range(0, size, 32):
            rows = slice(start, start + 32)
            metrics.update(torch.from_numpy(probs[rows]), torch.from_numpy(manifest.targets[rows]))
        metrics.compute()
    with measured.part("metrics and intervals"):
        thresholds = youden_thresholds(probs, one.targets, task=one.task)
        summary = summarise(one, thresholds=thresholds)
        write_metrics(place / "metrics.json", {"test": summary})
    with measured.part("figures"):
        figures = place / "figures"
        figures.mkdir()
        write_figures(figures, {"test": one}, thresholds=thresholds, summaries={"test": summary}, history=None)
    return iter(())


def search(asked: argparse.Namespace, size: int) -> Iterator[tuple[str, Row]]:
    """Search for near-duplicates among different pictures; the last of them are changed copies of the first."""
    side, originals = PHANTOM_PX, size - size // COPIES
    file = asked.folder / f"different-{size}.npy"
    pictures = np.lib.format.open_memmap(file, "w+", dtype=np.uint8, shape=(size, side, side, 1))
    boxes = np.zeros((size, 4), dtype=np.int64)
    painted = isolated(functools.partial(paint, originals=originals), range(size), lost=_lost, workers=asked.workers)
    for row, film in enumerate(painted):
        pictures[row] = fit_image(film, size_px=side, fit="pad")
        rows, columns = content_box(*film.shape[:2], size_px=side, fit="pad")
        boxes[row] = rows.start, rows.stop, columns.start, columns.stop
    pictures.flush()
    measured = Measured()
    with measured.part("search"):
        pairs = find_near_duplicates(pictures, boxes, progress=False, workers=asked.workers, folder=asked.folder)
    source = np.concatenate([np.arange(originals), np.arange(size - originals)])
    found = {pair.second for pair in pairs if source[pair.first] == source[pair.second]}
    false = {row for pair in pairs if source[pair.first] != source[pair.second] for row in (pair.first, pair.second)}
    measured.rows["search"] |= {
        "recall of the copies, %": 100 * len(found) / max(1, size - originals),
        "falsely flagged per 1,000": 1000 * len(false) / size,
    }
    yield from measured.rows.items()
    file.unlink()


def paint(row: int, *, originals: int) -> np.ndarray:
    """Paint one of many different films, or a changed copy of one of the first, uint8 (H, W, 1)."""
    if row < originals:
        return _film(row, PHANTOM_PX)[..., np.newaxis]
    number = row - originals
    return several(_film(number, COPIED_PX), np.random.default_rng((2, number)))[..., np.newaxis]


def _film(number: int, size_px: int) -> np.ndarray:
    """Paint two lungs and structure that no other film has, uint8 (H, W); the same one at every size."""
    rng = np.random.default_rng((1, number))
    height, width = (int(size_px * factor) for factor in rng.uniform(1.1, 1.5, 2))
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j].astype(np.float32)
    film = 0.6 * np.exp(-((x**2 + y**2) ** 2))
    for side in (-1, 1):
        across, along = (x - side * rng.uniform(0.35, 0.45)) / 0.25, y / rng.uniform(0.5, 0.7)
        film -= 0.35 * np.exp(-((across**2 + along**2) ** 2))
    for cells in (4, 8, 16, 32, 64):
        layer = rng.normal(size=(cells, cells)).astype(np.float32)
        film += 0.1 * cv2.resize(layer, (width, height), interpolation=cv2.INTER_CUBIC) / cells**0.5
    film = film * rng.uniform(0.8, 1.1) + rng.uniform(0.2, 0.35)
    return np.clip(255 * film, 0, 255).astype(np.uint8)


def _lost(row: int) -> np.ndarray:
    raise RuntimeError(f"picture {row} could not be painted")


if __name__ == "__main__":
    sys.exit(main())
