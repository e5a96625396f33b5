"""Which values of a training config can work, alone and together. Every fault is found, none is raised."""

import math
from collections.abc import Iterator

from medxfer.config import DataConfig, TrainConfig

MIN_IMAGE_SIZE_PX = 75  # below this the unpadded convolutions of Inception V3 leave nothing
MAX_PIXELS = 2**31  # where decoders' own sizes end
MAX_NAME_BYTES = 200  # file systems take 255


def data_faults(data: DataConfig) -> Iterator[str]:
    """Yield what is wrong with the data section."""
    if not data.source:
        yield "data.source must name a CSV or a folder of class folders: add --data.source labels.csv"
    yield from _outside("data.image_size_px", data.image_size_px, MIN_IMAGE_SIZE_PX, 2048)
    yield from _outside("data.max_pixels", data.max_pixels, 1, MAX_PIXELS)
    if data.folds:
        yield from _outside("data.folds", data.folds, 3, math.inf)
        if not 0 <= data.fold < data.folds:
            yield f"data.fold must be from 0 to {data.folds - 1} (data.folds - 1), got {data.fold}"
    elif data.fold:
        yield f"data.fold is {data.fold} but data.folds is 0: set the number of folds too"
    yield from _outside("data.val_fraction", data.val_fraction, 0.01, 0.9)
    yield from _outside("data.test_fraction", data.test_fraction, 0.01, 0.9)
    if data.val_fraction + data.test_fraction >= 0.95:
        both = f"{data.val_fraction:g} + {data.test_fraction:g}"
        yield f"data.val_fraction + data.test_fraction must leave images to train on, got {both}"
    yield from _outside("data.augment", data.augment, 0, 3)
    yield from _outside("data.views", data.views, 0, 10_000)
    yield from feeding_faults(data.batch_size, data.num_workers, section="data.")
    if not data.label_columns:
        yield "data.label_columns must name at least one column, got an empty list"
    for name, columns in (("label_columns", data.label_columns), ("group_columns", data.group_columns)):
        if len(set(columns)) < len(columns):
            yield f"data.{name} must name each column once, got {columns}"
    if data.class_names is not None and len(set(data.class_names)) < max(2, len(data.class_names)):
        yield f"data.class_names must be at least two different names, got {data.class_names}"


def training_faults(config: TrainConfig) -> list[str]:
    """List what is wrong with a config whose fields already have the right types; empty when it can be trained."""
    return [
        *_run_faults(config),
        *data_faults(config.data),
        *_model_faults(config),
        *_head_init_faults(config),
        *_learning_faults(config),
    ]


def name_faults(setting: str, name: str) -> Iterator[str]:
    """Yield why a text cannot be the name of one folder.

    >>> list(name_faults("--name", "../elsewhere"))
    ["--name must be a name without slashes, and neither . nor .., got '../elsewhere'"]
    """
    if name in ("", ".", "..") or any(character in name for character in "/\\\0"):
        yield f"{setting} must be a name without slashes, and neither . nor .., got {name!r}"
    elif len(name.encode()) > MAX_NAME_BYTES:
        yield f"{setting} must have at most {MAX_NAME_BYTES} bytes, got {len(name.encode())}"


def feeding_faults(batch_size: int | None, num_workers: int | None, *, section: str = "") -> Iterator[str]:
    """Yield what is wrong with the two settings that every verb has; `section` stands before their names."""
    if batch_size is not None:
        yield from _outside(f"{section}batch_size", batch_size, 1, math.inf)
    if num_workers is not None:
        yield from _outside(f"{section}num_workers", num_workers, 0, 512)


def _outside(name: str, value: float, low: float, high: float, *, open_high: bool = False) -> Iterator[str]:
    inside = low <= value < high if open_high else low <= value <= high
    if not inside:  # also true for NaN
        bound = "" if math.isinf(high) else f" and {'below' if open_high else 'at most'} {high}"
        yield f"{name} must be at least {low}{bound}, got {value}"


def _run_faults(config: TrainConfig) -> Iterator[str]:
    yield from _outside("seed", config.seed, 0, 2**32 - 1)
    if config.tracking.experiment.strip() in ("", "Default"):
        yield (
            "tracking.experiment must be a name other than Default, whose files MLflow keeps elsewhere, got "
            f"{config.tracking.experiment!r}"
        )
    if config.tracking.run_name is not None:
        yield from name_faults("tracking.run_name", config.tracking.run_name)


def _model_faults(config: TrainConfig) -> Iterator[str]:
    model = config.model
    if model.suffix_batch_norm == "train" and config.data.batch_size == 1:
        yield "data.batch_size must be at least 2 for model.suffix_batch_norm: train (one image has no variance), got 1"
    for name, values in (("model.input_mean", model.input_mean), ("model.input_std", model.input_std)):
        if values is not None and len(values) not in (1, 3):
            yield f"{name} must hold 1 or 3 numbers, got {len(values)}"
        elif values is not None and not all(math.isfinite(value) for value in values):
            yield f"{name} must hold finite numbers, got {values}"
        elif values is not None and name == "model.input_std" and min(values) <= 0:
            yield f"model.input_std must be positive, got {values}"
    if config.cache.at == "cut" and model.freeze_until == "none":
        yield "cache.at: cut keeps what the frozen blocks give, but model.freeze_until is none: choose head or none"
    if config.cache.at == "cut" and not config.data.views and config.data.augment:
        yield (
            "cache.at: cut keeps the versions of each image, but data.views is 0, new ones in every epoch: set "
            "data.views to at least 1, or cache.at to none"
        )
    yield from _outside("model.hidden_features", model.hidden_features, 1, 65536)
    yield from _outside("model.dropout", model.dropout, 0, 1, open_high=True)
    if model.weights == "none":
        wanted = {
            "model.freeze_until": (model.freeze_until, "none"),
            "stages.head_epochs": (config.stages.head_epochs, 0),
            "model.suffix_batch_norm": (model.suffix_batch_norm, "train"),
        }
        wrong = [f"{name} must be {want}, got {found}" for name, (found, want) in wanted.items() if found != want]
        if wrong:
            yield (
                "model.weights: none starts from random numbers, and a frozen random backbone is numerically "
                "meaningless (its activations grow or vanish from block to block): " + "; ".join(wrong)
            )


def _head_init_faults(config: TrainConfig) -> Iterator[str]:
    init = config.head_init
    yield from _outside("head_init.std", init.std, 1e-12, 10)
    if not math.isfinite(init.bias):
        yield f"head_init.bias must be a finite number, got {init.bias}"
    if init.method.startswith("small_") and init.mode is not None:
        yield f"head_init.mode has no meaning for {init.method}, which uses head_init.std: leave it out"
    if init.method == "small_normal" and init.distribution == "uniform":
        yield "head_init.distribution is uniform but head_init.method is small_normal: use small_uniform"


def _learning_faults(config: TrainConfig) -> Iterator[str]:
    stages, optim, loss, trainer = config.stages, config.optim, config.loss, config.trainer
    yield from _outside("stages.head_epochs", stages.head_epochs, 0, math.inf)
    yield from _outside("stages.finetune_epochs", stages.finetune_epochs, 0, math.inf)
    if stages.head_epochs + stages.finetune_epochs == 0:
        yield "stages.head_epochs + stages.finetune_epochs must be at least 1, got 0: nothing would be trained"
    yield from _outside("stages.patience", stages.patience, 1, math.inf)
    if not (optim.lr > 0 and math.isfinite(optim.lr)):
        yield f"optim.lr must be a positive number, got {optim.lr}"
    yield from _outside("optim.backbone_lr_scale", optim.backbone_lr_scale, 0, 10)
    yield from _outside("optim.layer_decay", optim.layer_decay, 0, 1)
    yield from _outside("optim.weight_decay", optim.weight_decay, 0, 10)
    yield from _outside("optim.momentum", optim.momentum, 0, 1, open_high=True)
    yield from _outside("optim.warmup_epochs", optim.warmup_epochs, 0, math.inf)
    yield from _outside("optim.step_epochs", optim.step_epochs, 1, math.inf)
    yield from _outside("optim.step_factor", optim.step_factor, 0, 1)
    yield from _outside("optim.gradient_clip", optim.gradient_clip, 0, math.inf)
    yield from _outside("loss.label_smoothing", loss.label_smoothing, 0, 0.9)
    if loss.name == "focal" and loss.label_smoothing:
        yield "loss.label_smoothing is not defined for loss.name: focal; set one of them back"
    yield from _outside("loss.focal_gamma", loss.focal_gamma, 0, 20)
    if trainer.devices not in ("auto", 1) or trainer.num_nodes != 1:
        yield (
            "training on several devices or machines is not supported yet: set trainer.devices to 1 or auto and "
            f"trainer.num_nodes to 1, got {trainer.devices} and {trainer.num_nodes}"
        )
    yield from _outside("trainer.accumulate", trainer.accumulate, 1, math.inf)
    yield from _outside("checkpoint.every_minutes", config.checkpoint.every_minutes, 0, math.inf)
    yield from _outside("checkpoint.keep", config.checkpoint.keep, 0, math.inf)
