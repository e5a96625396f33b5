"""Images per second and peak memory of `python -m medxfer.predict`: `python benchmarks/predict.py --help`.

A run is trained for a moment, and then applied to a quarter of the images and to all of them, each time in a process
of its own. `beyond` is the rate of the images that the second has more, which leaves out the start of the program, and
memory that grew with the images would show. Memory is what processes have of their own; mapped files do not count.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from machine import describe
from memory import PeakMemory

from medxfer.data.datamodule import cores
from medxfer.data.phantoms import write_xray_phantoms
from medxfer.data.reading import find_images

DIFFERENT = 100
"""Synthetic pictures that are painted; files repeat them."""

PHANTOM_PX = 512


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="10,000 images")
    parser.add_argument("--images", type=int, help="number of images (default: 1200, with --full 10000)")
    parser.add_argument("--data", type=Path, help="folder of real images (default: synthetic X-rays)")
    parser.add_argument("--run", type=Path, help="a finished run (default: one that is trained for a moment)")
    parser.add_argument("--weights", help="file of source weights for that run (default: random)")
    parser.add_argument("--size-px", type=int, default=299, help="side of its pictures (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=min(8, cores()), help="that decode (default: %(default)s)")
    parser.add_argument("more", nargs="*", help="behind --: options of medxfer.predict, such as --batch_size=64")
    asked = parser.parse_args(arguments)
    images = asked.images or (10_000 if asked.full else 1200)
    print(describe(), flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        table = write_xray_phantoms(folder / "phantoms", patients=DIFFERENT, size_px=PHANTOM_PX)
        originals = find_images(asked.data) if asked.data else [table.parent / p for p in pd.read_csv(table)["path"]]
        originals = originals[:DIFFERENT]
        run = asked.run or train(folder, table, asked)
        what = f"real images of {asked.data.name}" if asked.data else f"synthetic X-rays of {PHANTOM_PX} px"
        print(
            f"\n{what}, {len(originals)} different ones; {asked.size_px} px, {asked.workers} decoding processes\n\n"
            f"{'images':>8}{'seconds':>10}{'img/s':>9}{'beyond':>9}{'MB':>8}{'MB of the largest decoder':>28}"
        )
        fewer, before = 0, 0.0
        for size in (images // 4, images):
            place = repeat(originals, folder / f"{size}", size)
            seconds, memory = predict(run, place, folder / f"{size}.csv", asked)
            beyond = f"{(size - fewer) / (seconds - before):.1f}" if fewer else ""
            cells = f"{size:>8}{seconds:>10.1f}{size / seconds:>9.1f}{beyond:>9}{memory.own_mb:>8.0f}"
            print(f"{cells}{memory.child_mb:>28.0f}", flush=True)
            fewer, before = size, seconds
    return 0


def train(folder: Path, table: Path, asked: argparse.Namespace) -> Path:
    """Train for one epoch on a few pictures, and return the run's folder."""
    few = folder / "phantoms" / "few.csv"
    pd.read_csv(table, dtype=str).head(48).to_csv(few, index=False)
    settings = {
        "data.source": few, "output_dir": folder / "runs", "tracking.run_name": "run",
        "data.image_size_px": asked.size_px, "data.near_duplicates": "off", "data.allow_leaks": "true",
        "model.weights": asked.weights or "none", "model.freeze_until": "Mixed_7a" if asked.weights else "none",
        "model.suffix_batch_norm": "train", "stages.head_epochs": 0, "stages.finetune_epochs": 1, "cache.at": "none",
    }  # fmt: skip
    command = [sys.executable, "-m", "medxfer.train", *(f"--{name}={value}" for name, value in settings.items())]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise SystemExit(f"the run could not be trained:\n{done.stdout}")
    return folder / "runs" / "run"


def repeat(originals: Sequence[Path], folder: Path, size: int) -> Path:
    """Give a few files many names."""
    folder.mkdir()
    for number in range(size):
        original = originals[number % len(originals)]
        name = folder / f"{number:06d}{original.suffix}"
        try:
            os.link(original, name)
        except OSError:  # they lie on another disk
            name.write_bytes(original.read_bytes())
    return folder


def predict(run: Path, images: Path, output: Path, asked: argparse.Namespace) -> tuple[float, PeakMemory]:
    """Run the verb on a folder; return its seconds, and the memory of its process and of those that decode."""
    command = [
        sys.executable, "-m", "medxfer.predict", f"--run={run}", str(images), f"--output={output}",
        f"--num_workers={asked.workers}", *asked.more,
    ]  # fmt: skip
    start = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        with PeakMemory(process.pid) as memory:
            _, errors = process.communicate()
        seconds = time.perf_counter() - start
    if process.returncode:
        raise SystemExit(f"the images could not be predicted:\n{errors}")
    return seconds, memory


if __name__ == "__main__":
    sys.exit(main())
