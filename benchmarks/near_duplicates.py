"""Recall and false alarms of the search for near-duplicates: `python benchmarks/near_duplicates.py --help`.

Each real collection (a folder with `labels.csv`: path, and patient_id if known) gets two changed copies of every image,
one by a single kind of change and one by several at once, made from the file at its full size, and is filled up with
phantoms. A copy is found if it is linked to its original; a false alarm is an image that is linked to one of another
patient. Pairs of real images that are no copies are listed, and drawn where `--sheets` says.
"""

import argparse
import io
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from PIL import Image
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from medxfer.data import near_duplicates
from medxfer.data.fitting import content_box, fit_image
from medxfer.data.near_duplicates import Pair, find_near_duplicates
from medxfer.data.phantoms import write_lesion_phantoms, write_xray_phantoms
from medxfer.data.reading import read_image

Change = Callable[[np.ndarray, np.random.Generator], np.ndarray]

COLLECTIONS = {"xray_nih": (1, write_xray_phantoms), "dermoscopy_isic": (3, write_lesion_phantoms)}
"""Folder → channels, and what fills it up."""

LOWEST = 0.4
"""Least similarity of the curve."""


def main() -> int:
    """Print the tables of every collection that is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("MEDXFER_TEST_DATA"), help="the real collections")
    parser.add_argument("--collections", default=",".join(COLLECTIONS), help="of them (default: %(default)s)")
    parser.add_argument("--images", type=int, default=5000, help="size of each collection (default: %(default)s)")
    parser.add_argument("--size-px", "--size_px", type=int, default=299, help="side of pictures (default: %(default)s)")
    parser.add_argument("--fit", default="pad", choices=["pad", "crop", "stretch"], help="default: %(default)s")
    parser.add_argument("--workers", type=int, default=2, help="threads (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the changes (default: %(default)s)")
    parser.add_argument("--sheets", type=Path, help="folder for contact sheets of unexpected pairs")
    arguments = parser.parse_args()
    if arguments.data is None:
        parser.error("say where the real collections are: --data, or MEDXFER_TEST_DATA")
    for name in arguments.collections.split(","):
        with tempfile.TemporaryDirectory() as folder:
            run(name, arguments, Path(folder))
    return 0


def run(name: str, arguments: argparse.Namespace, folder: Path) -> None:
    """Build one collection, search it, and print what was found."""
    collection = build(name, arguments, folder)
    counts = collection.images.origin.value_counts()
    print(f"\n{name}: {len(collection.images)} images of {arguments.size_px} px, {dict(counts)}")
    start, memory = time.perf_counter(), PeakMemory()
    with memory:
        pairs = find_near_duplicates(collection.pictures, collection.boxes, workers=arguments.workers)
    print(f"{time.perf_counter() - start:.0f} s with {arguments.workers} threads, {memory.peak_mb:.0f} MB more memory")
    for line in recall_table(collection.images, pairs):
        print(line)
    unexpected = [pair for pair in pairs if is_unexpected(collection.images, pair)]
    print(f"pairs of real images that are no copies: {len(unexpected)}")
    for pair in unexpected:
        paths = [Path(collection.images.file[row]).name for row in (pair.first, pair.second)]
        other = collection.images.patient[pair.first] != collection.images.patient[pair.second]
        print(f"  {' '.join(paths)}  {pair.similarity:.2f}, {pair.change}{', another patient' if other else ''}")
    # Once more with all that is even a little alike, for the curve.
    usual, near_duplicates.MIN_SIMILARITY = near_duplicates.MIN_SIMILARITY, LOWEST
    loose = find_near_duplicates(collection.pictures, collection.boxes, workers=arguments.workers)
    near_duplicates.MIN_SIMILARITY = usual
    for line in curve(collection.images, loose):
        print(line)
    if arguments.sheets:
        arguments.sheets.mkdir(parents=True, exist_ok=True)
        draw(collection, unexpected, arguments.sheets / f"{name}-unexpected.png")
        false = sorted(false_pairs(collection.images, loose), key=lambda pair: -pair.similarity)
        draw(collection, false, arguments.sheets / f"{name}-most-alike-of-two-patients.png")


@dataclass(frozen=True)
class Pictures:
    """A collection as the product stores it; `images` has origin, kind, source (a row), patient and file per row."""

    pictures: np.ndarray
    boxes: np.ndarray
    images: pd.DataFrame


def build(name: str, arguments: argparse.Namespace, folder: Path) -> Pictures:
    """Decode real images, their changed copies and phantoms; the files of a collection come first."""
    channels, write_phantoms = COLLECTIONS[name]
    table = pd.read_csv(arguments.data / name / "labels.csv", dtype=str)
    table["file"] = [str(arguments.data / name / path) for path in table.path]
    table["patient"] = table.patient_id if "patient_id" in table else table.path
    table = table.head(arguments.images // 3)
    amount = arguments.images - 3 * len(table)
    shared = {"size_px": 320, "seed": arguments.seed}
    if write_phantoms is write_xray_phantoms:
        phantoms = pd.read_csv(write_xray_phantoms(folder / "p", patients=amount, max_images_per_patient=1, **shared))
        patients = phantoms.patient_id
    else:
        phantoms = pd.read_csv(write_lesion_phantoms(folder / "p", images=amount, **shared))
        patients = phantoms.lesion_id
    side, rows = arguments.size_px, []
    pixels = np.lib.format.open_memmap(
        folder / "pixels.npy", "w+", dtype=np.uint8, shape=(arguments.images, side, side, channels)
    )
    boxes = np.zeros((arguments.images, 4), dtype=np.int64)

    def add(file: Path, **about: object) -> None:
        image = read_image(file, channels=channels)
        pixels[len(rows)] = fit_image(image, size_px=side, fit=arguments.fit)
        box = content_box(*image.shape[:2], size_px=side, fit=arguments.fit)
        boxes[len(rows)] = box[0].start, box[0].stop, box[1].start, box[1].stop
        rows.append({"file": str(file), **about})

    for number, (file, patient) in enumerate(zip(table.file, table.patient, strict=True)):
        add(Path(file), origin="real", kind="", source=number, patient=patient)
    kinds = list(CHANGES)[:-1]
    for number, (file, patient) in enumerate(zip(table.file, table.patient, strict=True)):
        original = np.asarray(Image.open(file).convert("L" if channels == 1 else "RGB"))
        rng = np.random.default_rng((arguments.seed, number))
        for kind in (kinds[number % len(kinds)], "several at once"):
            copy = folder / "copy.png"
            Image.fromarray(CHANGES[kind](original, rng)).save(copy, compress_level=1)
            add(copy, origin="copy", kind=kind, source=number, patient=patient)
    for path, patient in zip(phantoms.path, patients, strict=True):
        add(folder / "p" / path, origin="phantom", kind="", source=len(rows), patient=f"phantom {patient}")
    return Pictures(pixels, boxes, pd.DataFrame(rows))


def resized(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Make it smaller, down to 0.3 of its size, or a little larger."""
    scale = rng.uniform(0.3, 1.2)
    mode = (cv2.INTER_AREA, cv2.INTER_LINEAR, cv2.INTER_CUBIC)[rng.integers(3)]
    return cv2.resize(image, None, fx=scale, fy=scale, interpolation=mode)


def recompressed(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Write it as a JPEG of quality 30 to 60."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=int(rng.integers(30, 61)))
    return np.asarray(Image.open(file))


def cropped(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Cut up to 5 % off each side, mostly not alike."""
    return _cut(image, rng.uniform(0, 0.05, 4))


def cropped_fully(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Cut exactly 5 % off one to four sides."""
    sides = 0.05 * rng.integers(0, 2, 4)
    return _cut(image, sides if sides.any() else np.full(4, 0.05))


def _cut(image: np.ndarray, sides: np.ndarray) -> np.ndarray:
    height, width = image.shape[:2]
    top, bottom, left, right = (
        round(side * size) for side, size in zip(sides, (height, height, width, width), strict=True)
    )
    return np.ascontiguousarray(image[top : height - bottom, left : width - right])


def re_exposed(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Change contrast and brightness; what leaves 0..255 is clipped."""
    values = (image.astype(np.float32) - 128) * rng.uniform(0.7, 1.35) + 128 + rng.uniform(-40, 40)
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def gamma(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Apply a gamma of 0.6 to 1.7."""
    return np.rint(255 * (image / 255) ** np.exp(rng.uniform(-0.5, 0.5))).astype(np.uint8)


def flipped(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Mirror it left-right or up-down."""
    return np.ascontiguousarray(np.flip(image, int(rng.integers(2))))


def rotated(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Turn it by one to three quarters, mirrored or not."""
    return np.ascontiguousarray(np.rot90(image[:, ::-1] if rng.random() < 0.5 else image, int(rng.integers(1, 4))))


def several(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Apply each kind of change with a probability of 0.75."""
    crop = cropped if rng.random() < 0.5 else cropped_fully
    turn = flipped if rng.random() < 0.5 else rotated
    for change in (crop, resized, gamma, re_exposed, turn, recompressed):
        if rng.random() < 0.75:
            image = change(image, rng)
    return image


CHANGES: dict[str, Change] = {
    "resized 0.3 to 1.2": resized,
    "JPEG quality 30 to 60": recompressed,
    "cropped up to 5 % a side": cropped,
    "cropped 5 % on some sides": cropped_fully,
    "brightness and contrast": re_exposed,
    "gamma 0.6 to 1.7": gamma,
    "flipped": flipped,
    "rotated": rotated,
    "several at once": several,
}


def is_unexpected(images: pd.DataFrame, pair: Pair) -> bool:
    """Return whether two real images are linked."""
    return bool((images.origin[[pair.first, pair.second]] == "real").all())


def false_pairs(images: pd.DataFrame, pairs: list[Pair]) -> list[Pair]:
    """Return the pairs of two patients."""
    patient = images.patient.to_numpy()
    return [pair for pair in pairs if patient[pair.first] != patient[pair.second]]


def found(images: pd.DataFrame, pairs: list[Pair]) -> np.ndarray:
    """Return per row whether it is linked to its source, directly or through other copies of that."""
    source = images.source.to_numpy()
    links = np.array([(p.first, p.second) for p in pairs if source[p.first] == source[p.second]], dtype=int)
    first, second = links.reshape(-1, 2).T
    graph = coo_array((np.ones(len(first)), (first, second)), shape=(len(images), len(images)))
    _, cluster = connected_components(graph, directed=False)
    return cluster == cluster[source]


def flagged(images: pd.DataFrame, pairs: list[Pair], origins: tuple[str, ...] = ("real", "copy", "phantom")) -> int:
    """Return how many images of some origins are linked to an image of another patient."""
    rows = {row for pair in false_pairs(images, pairs) for row in (pair.first, pair.second)}
    return int(images.origin[sorted(rows)].isin(origins).sum())


def recall_table(images: pd.DataFrame, pairs: list[Pair]) -> Iterator[str]:
    """Write recall per kind of change, and false alarms per origin."""
    hits = pd.Series(found(images, pairs), index=images.index)
    copies = images[images.origin == "copy"]
    yield f"{'change':<28}{'copies':>8}{'found':>8}{'recall':>9}"
    for kind in [*CHANGES, "all"]:
        rows = copies.index if kind == "all" else copies.index[copies.kind == kind]
        yield f"{kind:<28}{len(rows):>8}{int(hits[rows].sum()):>8}{hits[rows].mean():>9.2%}"
    for origin in ("real", "copy", "phantom"):
        number, total = flagged(images, pairs, (origin,)), int((images.origin == origin).sum())
        yield f"flagged with another patient's, {origin}: {number} of {total}"


def curve(images: pd.DataFrame, pairs: list[Pair]) -> Iterator[str]:
    """Write recall and false alarms by threshold, and on half of the patients with the other half's threshold."""
    half = pd.factorize(images.patient)[0] % 2
    copies = (images.origin == "copy").to_numpy()
    yield f"{'threshold':<12}{'recall':>9}{'flagged per 1,000':>20}"
    for threshold in np.arange(LOWEST, 0.96, 0.04):
        kept = [pair for pair in pairs if pair.similarity >= threshold]
        number = 1000 * flagged(images, kept) / len(images)
        yield f"{threshold:<12.2f}{found(images, kept)[copies].mean():>9.2%}{number:>20.2f}"
    for learnt in (0, 1):
        inside = [pair for pair in pairs if half[pair.first] == half[pair.second] == learnt]
        rest = [pair for pair in pairs if half[pair.first] == half[pair.second] == 1 - learnt]
        false = [pair.similarity for pair in false_pairs(images, inside)]
        source = images.source.to_numpy()
        true = [pair.similarity for pair in inside if source[pair.first] == source[pair.second]]
        threshold = (max(false, default=LOWEST) + np.quantile(true, 0.005)) / 2
        kept = [pair for pair in rest if pair.similarity >= threshold]
        rows = half == 1 - learnt
        number = 1000 * flagged(images, kept) / rows.sum()
        recall = found(images, kept)[copies & rows].mean()
        yield (
            f"half {learnt}: two patients up to {max(false, default=LOWEST):.2f}, copies from "
            f"{np.quantile(true, 0.005):.2f} (0.5 %) → {threshold:.2f}; other half: recall {recall:.2%}, "
            f"flagged per 1,000: {number:.2f}"
        )


def draw(collection: Pictures, pairs: list[Pair], path: Path, *, limit: int = 24) -> None:
    """Write a contact sheet: the two pictures of each pair side by side, the second turned to match the first."""
    cells = []
    for pair in pairs[:limit]:
        second = near_duplicates.turned(collection.pictures[pair.second], near_duplicates.TURNS.index(pair.change))
        cell = np.hstack([collection.pictures[pair.first], second])
        cell = np.repeat(cell, 3, axis=2) if cell.shape[2] == 1 else cell
        cell = cv2.resize(cell, (320, 160), interpolation=cv2.INTER_AREA)
        cv2.putText(cell, f"{pair.similarity:.2f}", (4, 14), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (255, 255, 0))
        cells.append(cell)
    if cells:
        cells += [np.zeros_like(cells[0])] * (-len(cells) % 4)
        Image.fromarray(np.vstack([np.hstack(cells[i : i + 4]) for i in range(0, len(cells), 4)])).save(path)


class PeakMemory:
    """Watches how much memory of its own the process gets; mapped files do not count."""

    def __init__(self) -> None:
        self.peak_mb = 0.0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "PeakMemory":
        self._start = self._anonymous_mb()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(0.05):
            self.peak_mb = max(self.peak_mb, self._anonymous_mb() - self._start)

    @staticmethod
    def _anonymous_mb() -> float:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024


if __name__ == "__main__":
    raise SystemExit(main())
