"""Synthetic X-rays, lesions and coloured textures, written to disk as a user's files would be; for demo and tests."""

import csv
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from medxfer.data.dicom_files import write_dicom

ANATOMY = 0.1
"""How much structure of its own a picture has; without it, films of all patients would be copies of one another."""

Painter = Callable[[np.random.Generator, int], np.ndarray]


def write_xray_phantoms(
    folder: Path, *, patients: int, size_px: int = 160, seed: int = 0, max_images_per_patient: int = 3
) -> Path:
    """Write chest-like X-rays: `clear`, or with `opacity`, one to three soft bright patches inside a lung.

    Formats are mixed: 8-bit PNG, 16-bit PNG of 12-bit range, DICOM MONOCHROME2 with a window and MONOCHROME1 without.
    Sizes, exposure and anatomy vary; a third of the patients has both kinds of images.

    Args:
        folder: gets `images/` and `labels.csv` (path, label, patient_id, age, sex, view).
        patients: number of patients.
        size_px: middle height and width.
        seed: the same gives the same files.
        max_images_per_patient: each has 1 to that many.

    Returns:
        labels.csv.
    """
    (folder / "images").mkdir(parents=True)
    rows = []
    for patient in range(patients):
        rng = np.random.default_rng((seed, patient))
        habit = rng.uniform(0.0, 1.0, size=6)
        anatomy = _texture(np.random.default_rng((seed, patient, 1)))
        ill = patient % 2 == 1
        both = rng.random() < 0.33
        count = int(rng.integers(1, max_images_per_patient + 1))
        for number in range(count):
            opacity = ill != (both and number == count - 1 and count > 1)
            film = _chest(rng, habit, anatomy, size_px, opacity=opacity)
            name = _write_film(folder / "images", f"p{patient:04d}_{number}", film, patient, rng)
            rows.append(
                [f"images/{name}", "opacity" if opacity else "clear", f"P{patient:04d}", int(20 + 60 * habit[0]),
                 "F" if habit[1] < 0.5 else "M", "AP" if rng.random() < 0.4 else "PA"]
            )  # fmt: skip
    return _write_table(folder / "labels.csv", ["path", "label", "patient_id", "age", "sex", "view"], rows)


def write_source_phantoms(folder: Path, *, images_per_class: int, size_px: int = 96, seed: int = 0) -> Path:
    """Write a small source task in colour: a folder of class folders of textures and shapes on noisy grounds.

    Args:
        folder: gets one sub-folder per class.
        images_per_class: number of JPEG files in each.
        size_px: height and width.
        seed: the same gives the same files.

    Returns:
        The folder.
    """
    for k, (name, paint) in enumerate(SOURCE_CLASSES.items()):
        (folder / name).mkdir(parents=True)
        for number in range(images_per_class):
            rng = np.random.default_rng((seed, k, number))
            ground = cv2.GaussianBlur(rng.random((size_px, size_px)).astype(np.float32), (0, 0), rng.uniform(1, 6))
            ground = (ground - ground.mean()) / (ground.std() + 1e-6) * 0.1 + rng.uniform(0.3, 0.5)
            strength = paint(rng, size_px)[..., np.newaxis] * rng.uniform(0.5, 1.0)
            dark, bright = rng.uniform(0.1, 0.7, size=3), rng.uniform(0.5, 1.0, size=3)
            picture = (1 - strength) * ground[..., np.newaxis] * dark + strength * bright
            picture += rng.normal(0, 0.03, picture.shape)
            Image.fromarray(_to_uint8(picture)).save(folder / name / f"{number:04d}.jpg", quality=92)
    return folder


def write_lesion_phantoms(folder: Path, *, images: int, size_px: int = 160, seed: int = 0) -> Path:
    """Write dermoscopy-like JPEGs: `benign` (round, one colour) and `malignant` (irregular, several colours).

    Two images show the same lesion now and then; some files are turned and say so in EXIF.

    Args:
        folder: gets `images/` and `labels.csv` (path, label, lesion_id).
        images: number of images.
        size_px: middle height and width.
        seed: the same gives the same files.

    Returns:
        labels.csv.
    """
    (folder / "images").mkdir(parents=True)
    rows = []
    for number in range(images):
        lesion = number - number % 2 if number % 6 == 1 else number
        rng = np.random.default_rng((seed, lesion))
        malignant = lesion % 3 == 2
        picture = _lesion(rng, size_px, malignant=malignant)
        picture = _to_uint8(picture + np.random.default_rng((seed, number, 1)).normal(0, 0.02, picture.shape))
        image = Image.fromarray(picture)
        exif = Image.Exif()
        if number % 4 == 3:
            image = image.transpose(Image.Transpose.ROTATE_90)
            exif[0x0112] = 6  # shown after a turn of 90 degrees clockwise
        name = f"images/lesion_{number:04d}.jpg"
        image.save(folder / name, quality=92, exif=exif)
        rows.append([name, "malignant" if malignant else "benign", f"L{lesion:04d}"])
    return _write_table(folder / "labels.csv", ["path", "label", "lesion_id"], rows)


def _grid(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    return y / height - 0.5, x / width - 0.5


def _ellipse(y: np.ndarray, x: np.ndarray, cy: float, cx: float, ry: float, rx: float, soft: float) -> np.ndarray:
    distance = np.sqrt(((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2)
    return 1 / (1 + np.exp((distance - 1) / soft))


def _texture(rng: np.random.Generator) -> np.ndarray:
    """Return structure of all sizes that no other picture has, float32 (96, 96), mean 0 and standard deviation 1."""
    texture = np.zeros((96, 96), dtype=np.float32)
    for cells in (5, 10, 20, 40):
        layer = rng.normal(size=(cells, cells)).astype(np.float32)
        texture += cv2.resize(layer, texture.shape, interpolation=cv2.INTER_CUBIC) * (5 / cells) ** 0.5
    return (texture - texture.mean()) / texture.std()


def _chest(
    rng: np.random.Generator, habit: np.ndarray, anatomy: np.ndarray, size_px: int, *, opacity: bool
) -> np.ndarray:
    """Paint a film, float32 (H, W) on 0..1: bright is dense."""
    height, width = (int(size_px * rng.uniform(0.85, 1.15)) for _ in range(2))
    y, x = _grid(height, width)
    y, x = y + rng.uniform(-0.03, 0.03), x + rng.uniform(-0.03, 0.03)
    tilt = rng.normal(0, 0.04) + 0.1 * (habit[1] - 0.5)
    y, x = y + tilt * x, x - tilt * y
    film = 0.62 * _ellipse(y, x, 0.1, 0.0, 0.62, 0.44 + 0.06 * habit[2], 0.05)
    lungs = np.zeros_like(film)
    sides = []
    for side, own in ((-1, habit[4]), (1, habit[5])):
        cx, ry, rx = side * (0.18 + 0.05 * habit[3]), 0.24 + 0.13 * own, 0.11 + 0.06 * habit[2]
        lungs = np.maximum(lungs, _ellipse(y, x, -0.06 + 0.08 * own, cx, ry, rx, 0.06))
        sides.append((cx, ry, rx))
    own = cv2.resize(0.4 * anatomy + 0.9 * _texture(rng), (width, height), interpolation=cv2.INTER_CUBIC)
    film = film * (1 + ANATOMY * own) - 0.4 * lungs
    film += 0.16 * np.exp(-((x / 0.05) ** 2))
    film += 0.22 * _ellipse(y, x, 0.12, 0.07, 0.14, 0.11 + 0.08 * habit[5], 0.12)
    ribs = np.cos((y + (0.2 + 0.8 * habit[0]) * x**2) * (55 + 40 * habit[3]) + 6.3 * habit[2]) * lungs
    film += 0.035 * np.clip(ribs, 0, 1)
    if opacity:
        film += _patches(rng, y, x, sides) * lungs
    else:  # as much brightness over the whole film, so that the mean says little
        film += rng.uniform(0.0, 0.03)
    film += cv2.GaussianBlur(rng.normal(0, 1, film.shape).astype(np.float32), (0, 0), 1.5) * 0.02
    film = np.clip(film * rng.uniform(0.8, 1.15) + rng.uniform(-0.02, 0.08), 0, 1)
    return film.astype(np.float32)


def _patches(
    rng: np.random.Generator, y: np.ndarray, x: np.ndarray, sides: list[tuple[float, float, float]]
) -> np.ndarray:
    patches = np.zeros_like(y)
    for _ in range(int(rng.integers(1, 4))):
        cx, ry, rx = sides[int(rng.integers(2))]
        cy, cx = rng.uniform(-0.55, 0.75) * ry - 0.03, cx + rng.uniform(-0.35, 0.35) * rx
        radius = rng.uniform(0.045, 0.085)
        patches += rng.uniform(0.5, 0.66) * np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / (2 * radius**2 / 1.6))
    return patches


def _write_film(folder: Path, stem: str, film: np.ndarray, patient: int, rng: np.random.Generator) -> str:
    kind = int(rng.integers(4))
    twelve_bit = np.rint(film * 3900 + 100).astype(np.uint16)
    if kind == 0:
        Image.fromarray(_to_uint8(film)).save(folder / f"{stem}.png")
    elif kind == 1:
        Image.fromarray(twelve_bit).save(folder / f"{stem}.png")
    elif kind == 2:
        write_dicom(folder / f"{stem}.dcm", twelve_bit, patient_id=f"P{patient:04d}", window=(2050.0, 4000.0))
    else:
        inverted = (4095 - twelve_bit).astype(np.uint16)
        write_dicom(folder / f"{stem}.dcm", inverted, patient_id=f"P{patient:04d}", photometric="MONOCHROME1")
    return f"{stem}.dcm" if kind >= 2 else f"{stem}.png"


def _lesion(rng: np.random.Generator, size_px: int, *, malignant: bool) -> np.ndarray:
    """Paint a lesion on skin, float (H, W, 3) on 0..1."""
    height, width = int(size_px * rng.uniform(0.75, 0.9)), int(size_px * rng.uniform(1.0, 1.2))
    y, x = _grid(height, width)
    skin = np.array([0.85, 0.68, 0.58]) * rng.uniform(0.85, 1.1)
    texture = cv2.resize(_texture(rng), (width, height), interpolation=cv2.INTER_CUBIC)[..., np.newaxis]
    angle, radius = np.arctan2(y, x), np.hypot(y, x)
    edge = rng.uniform(0.16, 0.3)
    if malignant:
        edge = edge * (1 + sum(rng.uniform(0.06, 0.16) * np.sin(k * angle + rng.uniform(0, 6.3)) for k in (2, 3, 5, 7)))
    inside = 1 / (1 + np.exp((radius - edge) / 0.012))
    brown = np.array([0.45, 0.27, 0.18]) * rng.uniform(0.7, 1.3)
    colour = np.broadcast_to(brown, (height, width, 3)).copy()
    if malignant:
        for other in ([0.12, 0.1, 0.12], [0.35, 0.35, 0.5], [0.6, 0.3, 0.25]):
            cy, cx = rng.uniform(-0.15, 0.15, size=2)
            blot = np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / 0.01)[..., np.newaxis]
            colour = (1 - blot) * colour + blot * np.array(other)
    mask = inside[..., np.newaxis]
    return ((1 - mask) * skin + mask * colour) * (1 + ANATOMY * texture)


def _blobs(rng: np.random.Generator, size: int) -> np.ndarray:
    y, x = _grid(size, size)
    blobs = np.zeros_like(y)
    for _ in range(int(rng.integers(1, 5))):
        cy, cx = rng.uniform(-0.35, 0.35, size=2)
        blobs += np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / (2 * rng.uniform(0.04, 0.12) ** 2))
    return np.clip(blobs, 0, 1)


def _stripes(rng: np.random.Generator, size: int) -> np.ndarray:
    y, x = _grid(size, size)
    angle = rng.uniform(0, np.pi)
    return 0.5 + 0.5 * np.sin(rng.uniform(20, 60) * (np.cos(angle) * x + np.sin(angle) * y) + rng.uniform(0, 6.3))


def _rings(rng: np.random.Generator, size: int) -> np.ndarray:
    y, x = _grid(size, size)
    cy, cx = rng.uniform(-0.25, 0.25, size=2)
    return 0.5 + 0.5 * np.sin(rng.uniform(30, 70) * np.hypot(y - cy, x - cx) + rng.uniform(0, 6.3))


def _checks(rng: np.random.Generator, size: int) -> np.ndarray:
    y, x = _grid(size, size)
    step = rng.uniform(15, 45)
    return (np.sin(step * x + rng.uniform(0, 6.3)) * np.sin(step * y + rng.uniform(0, 6.3)) > 0).astype(np.float32)


def _speckle(rng: np.random.Generator, size: int) -> np.ndarray:
    spots = (rng.random((size, size)) < rng.uniform(0.01, 0.04)).astype(np.float32)
    return np.clip(cv2.GaussianBlur(spots, (0, 0), rng.uniform(1.0, 2.0)) * 14, 0, 1)


def _ellipses(rng: np.random.Generator, size: int) -> np.ndarray:
    y, x = _grid(size, size)
    cy, cx = rng.uniform(-0.25, 0.25, size=2)
    ry, rx = rng.uniform(0.1, 0.35, size=2)
    return _ellipse(y, x, cy, cx, ry, rx, 0.03)


SOURCE_CLASSES: dict[str, Painter] = {
    "blobs": _blobs,
    "checks": _checks,
    "ellipse": _ellipses,
    "rings": _rings,
    "speckle": _speckle,
    "stripes": _stripes,
}


def _to_uint8(picture: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(picture * 255), 0, 255).astype(np.uint8)


def _write_table(path: Path, header: list[str], rows: list[list[object]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)
    return path
