"""Makes what the contestants share: one table with a split, pictures that PIL can open, and one file of weights."""

import os
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image

from medxfer.config import DataConfig
from medxfer.data.collection import CHANNELS, Collection, build_collection
from medxfer.data.datamodule import cores
from medxfer.data.phantoms import write_lesion_phantoms, write_xray_phantoms
from medxfer.data.reading import read_image
from medxfer.data.store import PixelStore
from medxfer.models.inception import InceptionBackbone, initialize_from_scratch
from medxfer.models.weights import IMAGENET_MEAN_STD, load_source
from peers.job import Job

READ_BY_PIL = frozenset({".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp"})

PHANTOM_SIZE_PX = 512
"""Side of synthetic pictures: what public collections are usually shared in."""


def write_phantoms(folder: Path, *, modality: str, images: int) -> Path:
    """Write about so many synthetic pictures as JPEG and return their table; what is there already is kept."""
    table = folder / "labels.csv"
    if table.is_file():
        return table
    if modality == "dermoscopy":
        return write_lesion_phantoms(folder, images=images, size_px=PHANTOM_SIZE_PX)
    raw = write_xray_phantoms(folder / "raw", patients=max(4, images // 2), size_px=PHANTOM_SIZE_PX)
    rows = pd.read_csv(raw, dtype=str)
    (folder / "images").mkdir()
    for number, path in enumerate(rows["path"]):
        picture = read_image(raw.parent / path, channels=1)  # many are DICOM or 16-bit, which the peers cannot read
        rows.loc[number, "path"] = f"images/{Path(path).stem}.jpg"
        Image.fromarray(picture[..., 0]).save(folder / str(rows.loc[number, "path"]), quality=92)
    rows.to_csv(table, index=False)
    return table


def prepare(
    folder: Path,
    *,
    source: Path,
    weights: str | None,
    modality: str,
    image_size_px: int,
    batch_size: int,
    threads: int,
    workers: int,
    near_duplicates: str,
    seed: int = 0,
) -> tuple[Job, Collection, float]:
    """Split a table once, decode its images into medxfer's store, and write the weights that all start from.

    Args:
        folder: where all of it is kept.
        source: a table or a folder of class folders; a split of its own is used.
        weights: as `model.weights`; None: random, with batch norm calibrated on the training images.
        modality: xray or dermoscopy.
        image_size_px: side of the pictures.
        batch_size: images per step.
        threads: of the arithmetic.
        workers: loader processes of the peers.
        near_duplicates: as `data.near_duplicates`: copies decide about the split.
        seed: of the split and of random weights.

    Returns:
        The job, the collection, and the seconds that reading and decoding took; little, where an earlier call has
        decoded the same pictures.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = DataConfig(
        source=str(source),
        modality=modality,  # type: ignore[arg-type]
        image_size_px=image_size_px,
        near_duplicates=near_duplicates,  # type: ignore[arg-type]
    )
    start = time.perf_counter()
    data = build_collection(config, store_folder=folder / "pixels", seed=seed, workers=cores())
    seconds = time.perf_counter() - start
    manifest = data.manifest
    if manifest.task == "multilabel":
        raise SystemExit("the benchmark needs one label per image")
    others = sorted({file.suffix for file in manifest.files if file.suffix.lower() not in READ_BY_PIL})
    if others:
        raise SystemExit(f"the peers read files by PIL, which cannot open {', '.join(others)}: use another table")
    rows = {
        "path": [str(file.resolve()) for file in manifest.files],
        "label": [manifest.label_text(row) for row in range(len(manifest))],
        "split": data.splits,
        **({} if manifest.patients is None else {"patient_id": manifest.patients}),
    }
    table = folder / "split.csv"
    pd.DataFrame(rows).to_csv(table, index=False)
    (red, green, blue), std = IMAGENET_MEAN_STD
    mean = (red, green, blue)
    if weights is None:
        state = calibrated(data.pictures, np.flatnonzero(data.splits == "train"), seed=seed).state_dict()
    else:
        found = load_source(weights)
        if found.state_dict is None:
            raise SystemExit("--weights must name a file of weights; without it they are random and calibrated")
        state, mean, std = found.state_dict, found.input_mean, found.input_std
    torch.save(state, folder / "weights.pth")
    job = Job(
        table=str(table),
        weights=str(folder / "weights.pth"),
        mean=mean,
        std=std,
        class_names=manifest.class_names,
        modality=modality,
        store=str(folder / "pixels"),
        image_size_px=image_size_px,
        batch_size=batch_size,
        threads=threads,
        workers=workers,
        seed=seed,
    )
    return job, data, seconds


def calibrated(pictures: PixelStore, rows: np.ndarray, *, seed: int, batches: int = 2) -> InceptionBackbone:
    """Return a random backbone whose batch norms hold the statistics of some pictures.

    With statistics of 0 and 1 its activations would grow without bound, and such numbers may take another time.

    Args:
        pictures: uint8 (S, S, C) per row.
        rows: of the training split.
        seed: of the weights and of the choice.
        batches: of 16 pictures.
    """
    backbone = InceptionBackbone()
    initialize_from_scratch(backbone, generator=torch.Generator().manual_seed(seed))
    for module in backbone.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # the mean over all batches  # type: ignore[assignment]
    backbone.train()
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        for _ in range(batches):
            chosen = rng.choice(rows, size=min(16, len(rows)), replace=False)
            images = torch.from_numpy(np.stack([pictures[int(row)] for row in chosen])).permute(0, 3, 1, 2)
            backbone(images.float().expand(-1, 3, -1, -1) / 127.5 - 1)
    return backbone.eval()


def hold_to(threads: int) -> None:
    """Let this process and all that it starts use no more than so many threads and, where the system can, cores."""
    os.environ["OMP_NUM_THREADS"] = str(threads)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])


def about(data: Collection) -> str:
    """Return how many images of which kind there are, in one line."""
    number = {split: int((data.splits == split).sum()) for split in ("train", "val", "test")}
    channels = data.pictures[0].shape[-1]
    assert channels in CHANNELS.values()
    return (
        f"{len(data.splits)} images ({number['train']} train, {number['val']} val, {number['test']} test), "
        f"{channels} channel{'s' if channels > 1 else ''}"
    )
