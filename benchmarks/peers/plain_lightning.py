"""(a) The Lightning and torchvision script that a user would write: `python -m peers.plain_lightning --help`."""

import argparse
import logging
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import ModelCheckpoint
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchmetrics.classification import MulticlassAUROC
from torchvision.models import inception_v3
from torchvision.transforms import v2

from peers.finish import write_test
from peers.gate import Gate
from peers.job import Job, freeze, new_head, trained_parameters


class Images(Dataset):
    """Opens one file per item."""

    def __init__(self, job: Job, split: str, transform: Callable[[Image.Image], Tensor]) -> None:
        self.paths, self.targets = job.rows(split)
        self.transform = transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        with Image.open(self.paths[index]) as file:
            image = file.convert("RGB")
        return self.transform(image), self.targets[index]


def build_transform(job: Job, *, training: bool) -> v2.Compose:
    """Return torchvision's transforms, with ranges like those of medxfer's augmentation."""
    augment: list[v2.Transform] = []
    if training and job.modality == "xray":
        augment = [
            v2.RandomAffine(degrees=(-7, 7), translate=(0.04, 0.04), scale=(0.92, 1.08)),
            v2.ColorJitter(brightness=0.12, contrast=0.15),
        ]
    elif training:
        augment = [
            v2.RandomHorizontalFlip(),
            v2.RandomVerticalFlip(),
            v2.RandomAffine(degrees=(-180, 180), scale=(0.9, 1.2)),
            v2.ColorJitter(brightness=0.12, contrast=0.12, saturation=0.12, hue=0.015),
        ]
    size = (job.image_size_px, job.image_size_px)
    return v2.Compose(
        [
            v2.Resize(size),
            *augment,
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(job.mean, job.std),
        ]
    )


def build_loader(job: Job, split: str) -> DataLoader:
    """Return the loader of a split."""
    training = split == "train"
    return DataLoader(
        Images(job, split, build_transform(job, training=training)),
        batch_size=job.batch_size,
        shuffle=training,
        drop_last=training,  # batch norm needs more than one image
        num_workers=job.workers,
        persistent_workers=job.workers > 0,
    )


class Classifier(lightning.LightningModule):
    """torchvision's Inception V3 without its auxiliary classifier, and a new head."""

    def __init__(self, job: Job) -> None:
        super().__init__()
        self.model = inception_v3(weights=None, aux_logits=False, init_weights=False)
        self.model.load_state_dict(torch.load(job.weights, weights_only=True), strict=False)  # all but fc
        self.model.fc = new_head(len(job.class_names))  # type: ignore[assignment]
        self.auroc = MulticlassAUROC(len(job.class_names))
        self.lr = job.lr

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, targets = batch
        loss = F.cross_entropy(self(images), targets)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        images, targets = batch
        logits = self(images)
        self.auroc.update(logits.softmax(dim=1), targets)
        self.log("val_loss", F.cross_entropy(logits, targets))
        self.log("val_auroc", self.auroc)

    def predict_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return self(batch[0]).softmax(dim=1)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW((p for p in self.parameters() if p.requires_grad), lr=self.lr)


class Turns(lightning.Callback):
    """Hands every batch to the gate."""

    def __init__(self, gate: Gate) -> None:
        self.gate = gate

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.gate(len(batch[1]))

    def on_validation_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self.gate(len(batch[1]))


def build_trainer(**settings: Any) -> lightning.Trainer:
    """Return Lightning's trainer with its defaults, without its messages."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module="lightning")
    return lightning.Trainer(logger=False, enable_progress_bar=False, enable_model_summary=False, **settings)


def train_steps(job: Job, gate: Gate) -> None:
    """Train until the gate closes."""
    lightning.seed_everything(job.seed, verbose=False)
    classifier = Classifier(job)
    freeze(classifier.model, job.cut)
    gate.trained = trained_parameters(classifier)
    trainer = build_trainer(max_epochs=-1, limit_val_batches=0, enable_checkpointing=False, callbacks=[Turns(gate)])
    trainer.fit(classifier, build_loader(job, "train"))


def evaluate_steps(job: Job, gate: Gate) -> None:
    """Evaluate all images again and again until the gate closes."""
    classifier, loader = Classifier(job), build_loader(job, "all")
    trainer = build_trainer(enable_checkpointing=False, callbacks=[Turns(gate)])
    while True:
        trainer.validate(classifier, loader, verbose=False)


def main() -> None:
    """Train the head, then everything above the cut, and predict the test split with the best epoch."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("job", type=Path)
    parser.add_argument("--head-epochs", type=int, required=True)
    parser.add_argument("--finetune-epochs", type=int, required=True)
    parser.add_argument("--predictions", type=Path, required=True)
    asked = parser.parse_args()
    job = Job.read(asked.job)
    torch.set_num_threads(job.threads)
    lightning.seed_everything(job.seed, verbose=False)
    classifier = Classifier(job)
    train, val = build_loader(job, "train"), build_loader(job, "val")

    freeze(classifier.model, "all")
    build_trainer(max_epochs=asked.head_epochs, enable_checkpointing=False).fit(classifier, train, val)

    freeze(classifier.model, job.cut)
    classifier.lr = job.lr / 10
    with tempfile.TemporaryDirectory() as folder:
        best = ModelCheckpoint(folder, monitor="val_auroc", mode="max")
        trainer = build_trainer(max_epochs=asked.finetune_epochs, callbacks=[best])
        trainer.fit(classifier, train, val)
        outputs = trainer.predict(classifier, build_loader(job, "test"), ckpt_path="best", weights_only=False)
    write_test(job, torch.cat(outputs or []), asked.predictions)  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
