"""How fast collections are decoded, reopened, read and audited, and what that takes of memory.

    python benchmarks/store.py --data FOLDER

FOLDER holds xray_nih/, dermoscopy_isic/ and fullsize/; each row of the table is one of them, in a process of its own.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from medxfer.config import DataConfig
from medxfer.data.collection import CHANNELS, build_collection
from medxfer.data.datamodule import cores
from medxfer.data.decoding import Settings
from medxfer.data.fitting import fit_image
from medxfer.data.reading import find_images, read_image
from medxfer.data.store import build_store
from medxfer.results import audit_collection

COLLECTIONS = {"xray_nih": "xray", "dermoscopy_isic": "dermoscopy", "fullsize": "dermoscopy"}
SAMPLE = 100
"""Originals that are read one by one."""

COLUMNS = ("originals", "build", "reopen", "rows", "audit", "again", "MB", "MB of workers")


def measure(folder: Path, modality: str, size_px: int) -> list[float]:
    """Return images per second of each step, and the peak memory of this process and of its largest worker."""
    files = find_images(folder)
    settings = Settings(CHANNELS[modality], size_px, "pad")
    chosen = [files[i] for i in np.linspace(0, len(files) - 1, min(SAMPLE, len(files))).astype(int)]
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)

        def seconds(step: object) -> float:
            start = time.perf_counter()
            step()  # type: ignore[operator]
            return time.perf_counter() - start

        def build() -> object:
            return build_store(
                files, folder=place, settings=settings, on_unreadable="error", workers=cores(), progress=False
            )[0]

        originals = seconds(
            lambda: [fit_image(read_image(f, channels=settings.channels), size_px=size_px, fit="pad") for f in chosen]
        )
        rates = [len(chosen) / originals, len(files) / seconds(build), len(files) / seconds(build)]
        store = build()
        order = np.random.default_rng(0).permutation(len(files))
        rates.append(20 * len(files) / seconds(lambda: [store[row].sum() for _ in range(20) for row in order]))  # type: ignore[index]
        table = folder / "labels.csv"
        if table.is_file():
            config = DataConfig(source=str(table), modality=modality, image_size_px=size_px)  # type: ignore[arg-type]

            def audit() -> None:
                data = build_collection(config, store_folder=place, seed=0, workers=cores())
                audit_collection(config, data, folder=place, seed=0)

            rates += [len(files) / seconds(audit), len(files) / seconds(audit)]
        else:
            rates += [float("nan")] * 2
    peaks = [resource.getrusage(who).ru_maxrss / 2**10 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return [*rates, *peaks]


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("MEDXFER_TEST_DATA"))
    parser.add_argument("--size_px", type=int, default=299)
    parser.add_argument("--only", help="one collection, for the script itself")
    asked = parser.parse_args()
    if asked.data is None:
        parser.error("--data FOLDER or MEDXFER_TEST_DATA is needed")
    if asked.only:
        rates = measure(asked.data / asked.only, COLLECTIONS[asked.only], asked.size_px)
        print(
            f"{asked.only:<18}"
            + "".join(f"{rate:>{max(10, len(name) + 2)}.0f}" for name, rate in zip(COLUMNS, rates, strict=True))
        )
        return 0
    print(
        f"images per second at {asked.size_px} px on {cores()} cores; audit: all steps but decoding, again: remembered"
    )
    print(f"{'collection':<18}" + "".join(f"{name:>{max(10, len(name) + 2)}}" for name in COLUMNS), flush=True)
    for name in COLLECTIONS:
        subprocess.run([sys.executable, __file__, *sys.argv[1:], "--only", name], check=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
