"""(b) fastai's `vision_learner` on the same network, frozen at the same depth: `python -m peers.fastai_learner --help`.

fastai's mixed precision asks for the autocast of CUDA whatever the device (callback/fp16.py), so on a CPU `to_bf16()`
changes nothing but its warning; there its own `to_channelslast` without it is what is fastest, and is used. On a GPU it
is `to_channelslast` with bf16.
"""

import argparse
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from fastai.callback.channelslast import ChannelsLast
from fastai.callback.core import Callback, CancelValidException
from fastai.callback.fp16 import AMPMode, MixedPrecision
from fastai.callback.tracker import SaveModelCallback
from fastai.data.block import CategoryBlock, DataBlock
from fastai.data.core import DataLoaders
from fastai.data.transforms import ColReader, ColSplitter, Normalize
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from fastai.metrics import RocAuc, RocAucBinary
from fastai.torch_core import params, set_seed
from fastai.vision.augment import Resize, ResizeMethod, aug_transforms
from fastai.vision.data import ImageBlock
from fastai.vision.learner import vision_learner
from fastcore.foundation import L
from torch import nn
from torchvision.models import inception_v3

from peers.finish import write_test
from peers.gate import Gate
from peers.job import Job, last_frozen, new_head, trained_parameters

PRECISION = "bf16, channels last" if torch.cuda.is_available() else "float32, channels last"


def build_dataloaders(job: Job) -> DataLoaders:
    """Return fastai's loaders of the training and the validation split, with its own augmentation."""
    table = pd.read_csv(job.table, dtype=str)
    table = table[table["split"] != "test"]
    table["is_valid"] = table["split"] == "val"
    if job.modality == "xray":
        augment = aug_transforms(do_flip=False, max_rotate=7, max_zoom=1.08, max_lighting=0.12, max_warp=0)
    else:
        augment = aug_transforms(flip_vert=True, max_rotate=180, max_zoom=1.2, max_lighting=0.12, max_warp=0)
    block = DataBlock(
        blocks=(ImageBlock, CategoryBlock(vocab=list(job.class_names))),
        get_x=ColReader("path"),
        get_y=ColReader("label"),
        splitter=ColSplitter("is_valid"),
        item_tfms=Resize(job.image_size_px, method=ResizeMethod.Squish),
        batch_tfms=[*augment, Normalize.from_stats(job.mean, job.std, cuda=torch.cuda.is_available())],
    )
    return block.dataloaders(
        table, bs=job.batch_size, num_workers=job.workers, persistent_workers=job.workers > 0, device=device()
    )


def device() -> torch.device:
    """Return where the network runs."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def build_learner(job: Job, cbs: list[Callback]) -> Learner:
    """Return the learner: body, head of medxfer's shape, and parameter groups that end at the cut.

    `train_bn=False`: with fastai's default the batch norms below the cut would be trained, which is other work.
    """

    model = inception_v3(weights=None, aux_logits=False, init_weights=False)
    model.load_state_dict(torch.load(job.weights, weights_only=True), strict=False)  # all but fc
    names = [name for name, _ in model.named_children()]
    pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    learn = vision_learner(
        build_dataloaders(job),
        lambda pretrained: model,
        normalize=False,  # it is among the batch transforms
        custom_head=nn.Sequential(pool, *new_head(len(job.class_names))),
        n_out=len(job.class_names),
        splitter=partial(split_at, end=0 if job.cut == "none" else names.index(last_frozen(job.cut)) + 1),
        loss_func=CrossEntropyLossFlat(),
        lr=job.lr,
        train_bn=False,
        cbs=[*cbs, ChannelsLast(), *([MixedPrecision(AMPMode.BF16)] if torch.cuda.is_available() else [])],
    )
    learn.remove_cb(learn.progress)
    learn.logger = lambda values: None
    return learn


def split_at(model: nn.Sequential, end: int) -> L:
    """Return the parameters of frozen blocks, tuned blocks, and head; groups without any are left out.

    Args:
        model: body and head; fastai's body is torchvision's children up to the last pooling, in their order.
        end: number of children that are frozen, poolings included.
    """
    groups = (model[0][:end], model[0][end:], model[1])
    return L(params(group) for group in groups if len(params(group)))


def freeze(learn: Learner, cut: str) -> None:
    """Freeze up to the cut."""
    learn.freeze() if cut == "all" else learn.freeze_to(0 if cut == "none" else 1)


class Turns(Callback):
    """Hands every batch to the gate."""

    def __init__(self, gate: Gate, *, validates: bool) -> None:
        self.gate, self.validates = gate, validates

    def after_batch(self) -> None:
        self.gate(len(self.y))

    def before_validate(self) -> None:
        if not self.validates:
            raise CancelValidException


def train_steps(job: Job, gate: Gate) -> None:
    """Train until the gate closes."""
    set_seed(job.seed)
    learn = build_learner(job, [Turns(gate, validates=False)])
    freeze(learn, job.cut)
    gate.trained, gate.remark = trained_parameters(learn.model), PRECISION
    learn.fit(10**6)


def evaluate_steps(job: Job, gate: Gate) -> None:
    """Evaluate all images again and again until the gate closes."""
    learn = build_learner(job, [Turns(gate, validates=True)])
    gate.remark = PRECISION
    learn.model.to(memory_format=torch.channels_last)  # the callback acts in `fit` only
    table = pd.read_csv(job.table, dtype=str)
    loader = learn.dls.test_dl(table, with_labels=True)
    while True:
        learn.validate(dl=loader)


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
    set_seed(job.seed)
    auroc: Any = RocAucBinary() if len(job.class_names) == 2 else RocAuc()
    with tempfile.TemporaryDirectory() as folder:
        learn = build_learner(job, [])
        learn.metrics, learn.path = L(auroc), Path(folder)
        learn.freeze()
        learn.fit(asked.head_epochs, job.lr)
        freeze(learn, job.cut)
        learn.fit(asked.finetune_epochs, job.lr / 10, cbs=SaveModelCallback(monitor=auroc.name))
        test = learn.dls.test_dl(job.rows("test")[0])
        probs, _ = learn.get_preds(dl=test)
    write_test(job, probs, asked.predictions)


if __name__ == "__main__":
    main()
