"""(c) timm: its network, transforms, loader and optimizer in the loop of its train.py with `--amp --channels-last`.

Blocks are frozen by `requires_grad`: timm's own `freeze`, which puts other batch norms in their place, was slower.
"""

from collections.abc import Callable
from typing import Any

import torch
from PIL import Image
from timm import create_model
from timm.data import create_loader
from timm.optim import create_optimizer_v2
from timm.utils import random_seed
from torch import nn
from torch.utils.data import Dataset

from peers.gate import Gate
from peers.job import Job, freeze, new_head, trained_parameters

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
REMARK = "bf16 autocast, channels last"


class Images(Dataset):
    """Opens one file per item; timm's loader sets the transform."""

    def __init__(self, job: Job, split: str) -> None:
        self.paths, self.targets = job.rows(split)
        self.transform: Callable[[Image.Image], Any] | None = None

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        assert self.transform is not None
        with Image.open(self.paths[index]) as file:
            image = file.convert("RGB")
        return self.transform(image), self.targets[index]


def build_loader(job: Job, split: str) -> Any:
    """Return timm's loader, which normalises whole batches of uint8 pictures."""
    grey = job.modality == "xray"
    return create_loader(
        Images(job, split),  # type: ignore[arg-type]
        input_size=(3, job.image_size_px, job.image_size_px),
        batch_size=job.batch_size,
        is_training=split == "train",
        scale=(0.8, 1.0),
        hflip=0.0 if grey else 0.5,
        vflip=0.0 if grey else 0.5,
        color_jitter=0.12,
        interpolation="bilinear",
        mean=job.mean,
        std=job.std,
        num_workers=job.workers,
        persistent_workers=job.workers > 0,
        crop_pct=1.0,
        device=DEVICE,
    )


def build_model(job: Job) -> nn.Module:
    """Return timm's Inception V3, which has torchvision's layout, with a new head."""
    model = create_model("inception_v3", pretrained=False, num_classes=len(job.class_names))
    found = model.load_state_dict(torch.load(job.weights, weights_only=True), strict=False)
    if set(found.missing_keys) != {"fc.weight", "fc.bias"} or found.unexpected_keys:
        raise ValueError(f"timm's layout differs: {found}")
    model.fc = new_head(len(job.class_names))
    return model.to(device=DEVICE, memory_format=torch.channels_last)


def train_steps(job: Job, gate: Gate) -> None:
    """Train until the gate closes."""
    random_seed(job.seed)
    model = build_model(job)
    freeze(model, job.cut)
    gate.trained, gate.remark = trained_parameters(model), REMARK
    optimizer = create_optimizer_v2(model, opt="adamw", lr=job.lr, weight_decay=0.01)
    loss_fn = nn.CrossEntropyLoss()
    loader = build_loader(job, "train")
    model.train()
    while True:
        for images, targets in loader:
            images = images.contiguous(memory_format=torch.channels_last)
            with torch.autocast(DEVICE.type, dtype=torch.bfloat16):
                loss = loss_fn(model(images), targets)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            gate(len(targets))


def evaluate_steps(job: Job, gate: Gate) -> None:
    """Evaluate all images again and again, as timm's validate.py does, until the gate closes."""
    model = build_model(job).eval()
    gate.remark = REMARK
    loss_fn = nn.CrossEntropyLoss()
    loader = build_loader(job, "all")
    while True:
        for images, targets in loader:
            with torch.no_grad():
                images = images.contiguous(memory_format=torch.channels_last)
                with torch.autocast(DEVICE.type, dtype=torch.bfloat16):
                    output = model(images)
                    loss_fn(output, targets)
            gate(len(targets))
