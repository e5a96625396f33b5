"""How fast pictures are augmented one by one and in batches, and whether both do the same.

    python benchmarks/augment.py [--full] [--xray FOLDER] [--dermoscopy FOLDER]

Without folders of real images, synthetic ones are used. Three tables: images per second of albumentations on one core
and of the batched transforms on one core and on a GPU if there is one; the distributions of what both draw; and the
pictures, with the same parameters and over many versions of one picture.
"""

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import torch
from machine import describe
from scipy.stats import ks_2samp

from medxfer.data.augment import RANGES, Exposure, build_augmentation, build_pipeline
from medxfer.data.batch_augment import (
    COLOUR_NUMBERS,
    MOVEMENT_NUMBERS,
    build_batch_augmentation,
    draw_exposures,
    draw_moves,
    draw_tints,
    uniforms,
)
from medxfer.data.collection import CHANNELS
from medxfer.data.fitting import fit_image
from medxfer.data.phantoms import write_lesion_phantoms, write_xray_phantoms
from medxfer.data.reading import find_images, read_image

BATCH = 64
SECONDS = 3.0
"""Each rate is measured for at least so long."""


def main() -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for modality in RANGES:
        parser.add_argument(f"--{modality}", type=Path, metavar="FOLDER", help="real images of this modality")
    parser.add_argument("--size_px", type=int, default=299)
    parser.add_argument("--full", action="store_true", help="compare ten times as many versions")
    asked = parser.parse_args()
    draws = 20_000 if asked.full else 2_000
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    print(describe())
    batches = {modality: pictures(modality, getattr(asked, modality), asked.size_px) for modality in RANGES}

    print(f"\nimages per second at {asked.size_px} px, batches of {BATCH}")
    print(f"{'modality':<14}{'albumentations, one core':>26}{'batched, one core':>20}{'batched, GPU':>15}")
    for modality, batch in batches.items():
        print(
            f"{modality:<14}"
            + "".join(f"{rate:>{width}}" for rate, width in zip(rates(modality, batch), (26, 20, 15), strict=False))
        )

    print(f"\nwhat is drawn, {draws} times each: two-sample Kolmogorov-Smirnov tests")
    print(f"{'modality':<14}{'parameter':<16}{'albumentations':>24}{'batched':>24}{'statistic':>12}{'p':>8}")
    for modality in RANGES:
        theirs, ours = drawn_by_albumentations(modality, draws), drawn_in_batches(modality, draws)
        for name in theirs:
            cells = (f"{sample[name].mean():.4f} ± {sample[name].std():.4f}" for sample in (theirs, ours))
            test = ks_2samp(theirs[name], ours[name])
            print(f"{modality:<14}{name:<16}" + "".join(f"{c:>24}" for c in cells), end="")
            print(f"{test.statistic:>12.4f}{test.pvalue:>8.3f}")

    print("\nthe pictures with the same parameters, in grey levels")
    print(f"{'modality':<14}{'mean difference':>17}{'equal':>9}{'within 1':>10}{'within 2':>10}{'largest':>9}")
    for modality, batch in batches.items():
        error = differences(modality, batch)
        shares = "".join(f"{np.mean(error <= k):>{width}.3%}" for k, width in ((0, 9), (1, 10), (2, 10)))
        print(f"{modality:<14}{error.mean():>17.4f}{shares}{error.max():>9}")

    print(f"\n{draws} versions of one picture; control: albumentations against itself with other seeds")
    print(f"{'modality':<14}{'against':<16}{'of the means':>14}{'in std errors':>15}{'ratio of std':>14}")
    for modality, batch in batches.items():
        for name, (difference, distance, ratio) in versions(modality, batch[0], draws):
            print(f"{modality:<14}{name:<16}{difference:>14.3f}{distance:>15.3f}{ratio:>14.3f}", flush=True)
    return 0


def pictures(modality: str, folder: Path | None, size_px: int) -> np.ndarray:
    """Return a batch of real pictures, or of phantoms, uint8 (B, S, S, C); few are repeated."""
    with tempfile.TemporaryDirectory() as place:
        if folder is None:
            folder = Path(place) / modality
            if modality == "xray":
                write_xray_phantoms(folder, patients=12, size_px=size_px)
            else:
                write_lesion_phantoms(folder, images=24, size_px=size_px)
        files = find_images(folder)[:BATCH]
        read = [fit_image(read_image(f, channels=CHANNELS[modality]), size_px=size_px, fit="pad") for f in files]
    return np.stack([np.asarray(read[k % len(read)]) for k in range(BATCH)])


def rates(modality: str, batch: np.ndarray) -> Iterator[str]:
    """Measure images per second, one by one and in batches."""
    one, batched = build_augmentation(modality, 1.0), build_batch_augmentation(modality, 1.0)
    assert one is not None
    assert batched is not None
    yield f"{rate(lambda: [one(picture, seed) for seed, picture in enumerate(batch)]):,.0f}"
    images, seeds = to_batch(batch), np.arange(BATCH, dtype=np.uint32)
    yield f"{rate(lambda: batched(images, seeds)):,.0f}"
    if not torch.cuda.is_available():
        yield "none here"
        return
    there = images.cuda()

    def many() -> None:
        for _ in range(20):
            batched(there, seeds)
        torch.cuda.synchronize()

    yield f"{20 * rate(many):,.0f}"


def rate(step: Callable[[], object]) -> float:
    """Return images per second of a step that takes one batch."""
    step()
    steps, start = 0, time.perf_counter()
    while time.perf_counter() - start < SECONDS:
        step()
        steps += 1
    return steps * BATCH / (time.perf_counter() - start)


def drawn_by_albumentations(modality: str, draws: int) -> dict[str, np.ndarray]:
    """Return name → numbers that its transforms drew where they were applied."""
    pipeline = build_pipeline(modality, 1.0)
    picture = np.zeros((32, 32, CHANNELS[modality]), dtype=np.uint8)
    found: dict[str, list[float]] = {}
    for seed in range(draws):
        pipeline.set_random_state(np.random.default_rng(seed), random.Random(seed))
        pipeline(image=picture)
        for transform in pipeline.transforms:
            drawn = transform.params
            numbers = {name: drawn[key] for key, name in NAMES.items() if key in drawn}
            if "scale" in drawn:
                middle = np.array([15.5, 15.5, 1])
                x, y, _ = drawn["matrix"] @ middle - middle
                numbers |= {"scale_x": drawn["scale"]["x"], "scale_y": drawn["scale"]["y"]}
                numbers |= {"shift_x_px": round(x), "shift_y_px": round(y)} if modality == "xray" else {}
            if "order" in drawn:
                numbers["place of hue"] = drawn["order"].index(3)
            for name, number in numbers.items():
                found.setdefault(name, []).append(number)
    return {name: np.array(numbers) for name, numbers in found.items()}


NAMES = {
    "rotate": "rotation_deg", "alpha": "factor", "beta": "offset", "brightness": "brightness", "contrast": "contrast",
    "saturation": "saturation", "hue": "hue",
}  # fmt: skip
"""albumentations' parameter → its name here."""


def drawn_in_batches(modality: str, draws: int) -> dict[str, np.ndarray]:
    """Return name → numbers that the batched transforms drew where they were applied."""
    movement, intensity = RANGES[modality](1.0)
    numbers = uniforms(np.random.default_rng(0).integers(0, 2**32, draws), MOVEMENT_NUMBERS + COLOUR_NUMBERS)
    moves, rest = draw_moves(movement, numbers, size_px=32), numbers[:, MOVEMENT_NUMBERS:]
    moved, changed = numbers[:, 2] < movement.p, rest[:, 0] < intensity.p
    found = {"rotation_deg": moves.rotation_deg[moved]}
    found |= {f"scale_{axis}": moves.scale[moved, k] for k, axis in enumerate("xy")}
    found |= {f"shift_{axis}_px": moves.shift_px[moved, k] for k, axis in enumerate("xy")}
    if isinstance(intensity, Exposure):
        exposures = draw_exposures(intensity, rest)
        return found | {"factor": exposures.factor[changed], "offset": exposures.offset[changed]}
    tints = draw_tints(intensity, rest)
    found |= {name: tints.factors[changed, k] for k, name in enumerate(("brightness", "contrast", "saturation"))}
    return found | {"hue": tints.hue[changed], "place of hue": tints.order[changed].argsort(axis=1)[:, 3]}


def differences(modality: str, batch: np.ndarray) -> np.ndarray:
    """Return by how many grey levels the two differ on a batch, with the parameters that the batched one draws."""
    movement, intensity = RANGES[modality](1.0)
    seeds = np.arange(len(batch), dtype=np.uint32)
    numbers = uniforms(seeds, MOVEMENT_NUMBERS + COLOUR_NUMBERS)
    moves, rest = draw_moves(movement, numbers, size_px=batch.shape[1]), numbers[:, MOVEMENT_NUMBERS:]
    *_, affine, change = build_pipeline(modality, 1.0).transforms
    expected = []
    for k, picture in enumerate(batch):
        moved = picture[:, ::-1] if moves.mirrored[k, 0] else picture
        moved = moved[::-1] if moves.mirrored[k, 1] else moved
        matrix = forward(moves.rotation_deg[k], moves.scale[k], moves.shift_px[k], (batch.shape[1] - 1) / 2)
        moved = affine.apply(np.ascontiguousarray(moved), matrix=matrix, output_shape=picture.shape[:2])
        if isinstance(intensity, Exposure):
            drawn = draw_exposures(intensity, rest)
            moved = change.apply(moved, alpha=float(drawn.factor[k]), beta=float(drawn.offset[k]))
        elif (tints := draw_tints(intensity, rest)).changed[k]:
            brightness, contrast, saturation = map(float, tints.factors[k])
            moved = change.apply(
                moved, brightness=brightness, contrast=contrast, saturation=saturation, hue=float(tints.hue[k]),
                order=tints.order[k].tolist(),
            )  # fmt: skip
        expected.append(moved.reshape(picture.shape))
    batched = build_batch_augmentation(modality, 1.0)
    assert batched is not None
    return np.abs(to_pictures(batched(to_batch(batch), seeds)).astype(int) - np.stack(expected))


def forward(rotation_deg: float, scale: np.ndarray, shift_px: np.ndarray, middle: float) -> np.ndarray:
    """Return the matrix that takes a point of a picture to its new place, (3, 3)."""
    cosine, sine = np.cos(np.deg2rad(rotation_deg)), np.sin(np.deg2rad(rotation_deg))
    matrix = np.eye(3)
    matrix[:2, :2] = np.array([[cosine, sine], [-sine, cosine]]) * scale
    matrix[:2, 2] = middle + shift_px - matrix[:2, :2] @ (middle, middle)
    return matrix


def versions(modality: str, picture: np.ndarray, draws: int) -> Iterator[tuple[str, tuple[float, float, float]]]:
    """Compare mean and standard deviation of each pixel over many versions of a picture.

    Gives the mean absolute difference of the means in grey levels, its root mean square in standard errors (about 1
    where the distribution is the same), and the median ratio of the standard deviations.
    """
    one, batched = build_augmentation(modality, 1.0), build_batch_augmentation(modality, 1.0)
    assert one is not None
    assert batched is not None
    random_seeds = np.random.default_rng(0).integers(0, 2**32, (3, draws))
    images = to_batch(picture[np.newaxis].repeat(BATCH, axis=0))
    theirs = moments(np.stack([one(picture, int(seed)) for seed in seeds]) for seeds in chunks(random_seeds[0]))
    others = {
        "batched": (to_pictures(batched(images[: len(seeds)], seeds)) for seeds in chunks(random_seeds[1])),
        "control": (np.stack([one(picture, int(seed)) for seed in seeds]) for seeds in chunks(random_seeds[2])),
    }
    for name, results in others.items():
        mean, variance = moments(results)
        difference, error = mean - theirs[0], np.sqrt((variance + theirs[1]) / draws) + 1e-9
        ratio = np.median(np.sqrt((variance + 1e-9) / (theirs[1] + 1e-9)))
        yield name, (np.abs(difference).mean(), np.sqrt(np.mean((difference / error) ** 2)), float(ratio))


def moments(results: Iterator[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and variance of each pixel."""
    count, total, squares = 0, np.zeros(()), np.zeros(())
    for batch in results:
        count, total = count + len(batch), total + batch.sum(axis=0, dtype=np.float64)
        squares = squares + np.square(batch, dtype=np.float64).sum(axis=0)
    return total / count, squares / count - (total / count) ** 2


def chunks(seeds: np.ndarray) -> Iterator[np.ndarray]:
    """Return seeds of one batch after another."""
    return (seeds[start : start + BATCH] for start in range(0, len(seeds), BATCH))


def to_batch(pictures: np.ndarray) -> torch.Tensor:
    """Return (B, C, S, S) of (B, S, S, C)."""
    return torch.from_numpy(pictures.transpose(0, 3, 1, 2).copy())


def to_pictures(batch: torch.Tensor) -> np.ndarray:
    """Return (B, S, S, C) of (B, C, S, S)."""
    return batch.permute(0, 2, 3, 1).numpy()


if __name__ == "__main__":
    sys.exit(main())
