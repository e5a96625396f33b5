"""Every setting of every verb: one frozen dataclass per section, and all defaults.

The text under each field is its help on the command line, so code, YAML and `--help` cannot drift apart.
"""

from dataclasses import dataclass, field
from typing import Literal

FreezeUntil = Literal[
    "none", "Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "Conv2d_3b_1x1", "Conv2d_4a_3x3",
    "Mixed_5b", "Mixed_5c", "Mixed_5d", "Mixed_6a", "Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e",
    "Mixed_7a", "Mixed_7b", "Mixed_7c", "all",
]  # fmt: skip
Monitor = Literal["val/auroc", "val/average_precision", "val/balanced_accuracy", "val/loss"]


@dataclass(frozen=True)
class DataConfig:
    """Images, labels, and how they are split and fed."""

    source: str | None = None
    """A CSV with one row per image, or a folder with one sub-folder per class."""
    image_root: str | None = None
    """Folder that the CSV's paths start from; null: the folder of the CSV."""
    path_column: str = "path"
    """Column of the image paths."""
    label_columns: list[str] = field(default_factory=lambda: ["label"])
    """One column of class names, or several of 1, 0 and blank (multilabel; blank is unknown)."""
    patient_column: str | None = None
    """Column that says which images belong together; null: patient_id if there is one."""
    group_columns: list[str] = field(default_factory=list)
    """More columns whose images belong together, such as the lesion's."""
    split_column: str | None = None
    """Column of train, val and test; null: split if there is one, else the split is made; none: it is made."""
    task: Literal["auto", "binary", "multiclass", "multilabel"] = "auto"
    """What is predicted; auto: from the number of label columns and classes."""
    class_names: list[str] | None = None
    """Order of the classes; in binary the last is the positive one; null: sorted."""
    modality: Literal["xray", "dermoscopy"] = "xray"
    """xray: one grey channel, no flips; dermoscopy: three channels, full rotations."""
    image_size_px: int = 299
    """Side of the square pictures that the network sees."""
    fit: Literal["pad", "crop", "stretch"] = "pad"
    """How a picture becomes square; pad cuts nothing of the film away."""
    frame: Literal["first", "middle"] | None = None
    """Which picture of a file that holds several (multi-frame DICOM, TIFF pages); null: such files are refused."""
    max_pixels: int = 150_000_000
    """A larger picture is refused before it is decoded."""
    allow_outside_root: bool = False
    """Read images whose path, or the target of whose link, leaves the image folder."""
    val_fraction: float = 0.15
    """Share of the images for validation."""
    test_fraction: float = 0.15
    """Share of the images for the test."""
    folds: int = 0
    """Number of cross-validation folds instead of fractions; 0: none."""
    fold: int = 0
    """Which fold is the test split (0 to folds - 1); the next one is validation."""
    on_unreadable: Literal["error", "skip"] = "error"
    """error: list unreadable images and stop; skip: list them and go on without them."""
    near_duplicates: Literal["error", "warn", "off"] = "error"
    """Images on two sides of a split that differ by size, compression, brightness, crop or flip; off: not sought."""
    allow_leaks: bool = False
    """Train although the audit found what makes the result false; the run says so."""
    augment: float = 1.0
    """Strength of augmentation; 0 is off, 1 the modality's usual ranges."""
    views: int = 4
    """Versions of each training image: epoch e draws version e mod views; 0: a new one in every epoch, never cached."""
    batch_size: int = 32
    """Images per step over all devices together."""
    num_workers: int | None = None
    """Processes that prepare batches; null: one per core and device, at most 8, on a GPU; none on a CPU."""
    resident: Literal["auto", "on", "off"] = "auto"
    """Keep all pictures in the device's memory and augment there; auto: on a GPU where they fit in a third of it."""


@dataclass(frozen=True)
class ModelConfig:
    """The network and where its weights come from."""

    weights: str = "imagenet"
    """imagenet, none, or a path: torchvision or timm .pth, .safetensors, an earlier run folder."""
    input_mean: list[float] | None = None
    """Mean per channel that the weights expect, on 0..1; null: what their source declares."""
    input_std: list[float] | None = None
    """Standard deviation per channel that the weights expect, on 0..1; null: as declared."""
    normalization: Literal["weights", "dataset"] = "weights"
    """weights: as the weights expect; dataset: the mean is the training split's instead."""
    freeze_until: FreezeUntil = "Mixed_5d"
    """Last frozen block, or none, or all."""
    suffix_batch_norm: Literal["frozen", "train"] = "frozen"
    """Batch norm of the tuned blocks: stored statistics, or statistics of each batch."""
    hidden_features: int = 512
    """Width of the first of the two new layers."""
    dropout: float = 0.5
    """Probability of dropout between the two new layers."""
    fold: bool = True
    """Fold preprocessing and batch norm of everything that is not trained into its convolutions."""


@dataclass(frozen=True)
class HeadInitConfig:
    """Initialisation of the two new layers: std = g/sqrt(fan), g² = 2 (he) or 1 (xavier)."""

    method: Literal["he", "xavier", "small_normal", "small_uniform"] = "he"
    """he (He 2015), xavier (Glorot 2010), or a fixed small standard deviation."""
    mode: Literal["fan_in", "fan_out", "average"] | None = None
    """Which fan; null: fan_in for he, average for xavier."""
    distribution: Literal["normal", "uniform"] = "normal"
    """Normal, or uniform with the bound sqrt(3)·std; for he and xavier."""
    std: float = 0.01
    """Standard deviation of small_normal and small_uniform."""
    bias: float = 0.0
    """Value of every bias."""


@dataclass(frozen=True)
class StagesConfig:
    """Head first, then everything that is not frozen (LP-FT, Kumar 2022)."""

    head_epochs: int = 3
    """Epochs that train the head alone."""
    finetune_epochs: int = 12
    """Epochs that train the head and the blocks above the cut."""
    patience: int = 5
    """Epochs without improvement that end a stage."""
    monitor: Monitor = "val/auroc"
    """Metric that chooses the best epoch; ties are broken by val/loss."""


@dataclass(frozen=True)
class OptimConfig:
    """lr(block) = lr · backbone_lr_scale · layer_decay^(blocks between it and the head)."""

    name: Literal["adamw", "sgd", "rmsprop"] = "adamw"
    """The optimizer."""
    lr: float = 1e-3
    """Learning rate of the head."""
    backbone_lr_scale: float = 0.1
    """Learning rate of the last block as a share of the head's."""
    layer_decay: float = 0.9
    """Factor per block on the way down to the cut."""
    weight_decay: float = 0.01
    """L2; not on biases and batch norm."""
    momentum: float = 0.9
    """Momentum of sgd and rmsprop; first beta of adamw."""
    schedule: Literal["cosine", "step", "constant"] = "cosine"
    """Learning rate over each stage."""
    warmup_epochs: float = 0.5
    """Linear warm-up at the start of each stage."""
    step_epochs: int = 30
    """step: epochs between reductions."""
    step_factor: float = 0.0625
    """step: factor of each reduction (1/16, Esteva 2017)."""
    gradient_clip: float = 1.0
    """Largest gradient norm; 0 is off."""


@dataclass(frozen=True)
class LossConfig:
    """What is minimised."""

    name: Literal["cross_entropy", "focal"] = "cross_entropy"
    """Cross entropy (sigmoid per class in multilabel), or focal loss (Lin 2017)."""
    class_weights: Literal["none", "balanced"] = "none"
    """balanced: inverse to the class frequencies of the training split."""
    label_smoothing: float = 0.0
    """Share of the target spread over all classes."""
    focal_gamma: float = 2.0
    """Focusing parameter of the focal loss; 0 is cross entropy."""


@dataclass(frozen=True)
class TrainerConfig:
    """Machines and arithmetic."""

    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    """Kind of processor; auto: a GPU where there is one."""
    devices: int | Literal["auto"] = "auto"
    """Devices per machine; auto: one. More than one is not supported yet."""
    num_nodes: int = 1
    """Number of machines; more than one is not supported yet."""
    precision: Literal["auto", "32", "bf16"] = "auto"
    """auto: bf16 where the processor has it natively, else 32."""
    deterministic: bool = True
    """Only algorithms that give the same bits every time."""
    accumulate: int = 1
    """Batches whose gradients are added up for one step."""
    compile: bool = False
    """Compile the network (torch.compile): minutes at the start, for long runs; with CUDA graphs for small batches."""


@dataclass(frozen=True)
class TrackingConfig:
    """The MLflow run."""

    uri: str | None = None
    """Tracking server; null: MLFLOW_TRACKING_URI, else sqlite:///<output_dir>/mlflow.db."""
    experiment: str = "medxfer"
    """Name of the experiment."""
    run_name: str | None = None
    """Name of the run and its folder; null: the config's stem and the UTC time."""
    tags: dict[str, str] = field(default_factory=dict)
    """Tags of the run."""
    log_predictions: bool = False
    """Send predictions.csv and split.csv, which hold file names, to MLflow too."""
    log_images: bool = False
    """Send the contact sheet of training images to MLflow too."""


@dataclass(frozen=True)
class CheckpointConfig:
    """What is written while training."""

    every_minutes: float = 10.0
    """last.ckpt is written at each epoch's end, and within an epoch after this many minutes."""
    keep: int = 0
    """How many checkpoints of single epochs to keep besides best.ckpt and last.ckpt."""


@dataclass(frozen=True)
class CacheConfig:
    """What the frozen blocks give, computed once per version of an image and kept in <output_dir>/features."""

    at: Literal["none", "head", "cut"] = "head"
    """head: pooled features, for the head stage; cut: activations above the frozen blocks too, for both stages."""


@dataclass(frozen=True)
class TrainConfig:
    """Everything `medxfer.train` can be told."""

    output_dir: str = "runs"
    """Folder that holds one folder per run."""
    seed: int = 0
    """Seed of the split, the initialisation, the order, augmentation and dropout."""
    resume: str | None = None
    """A run folder to go on with; its config.yaml is read."""
    debug: bool = False
    """Show tracebacks."""
    profile: bool = False
    """Write a Chrome trace and a table by block of some steps of each stage to <run>/profile."""
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    head_init: HeadInitConfig = field(default_factory=HeadInitConfig)
    stages: StagesConfig = field(default_factory=StagesConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    cache: CacheConfig = field(default_factory=CacheConfig)


@dataclass(frozen=True)
class EvaluateDataConfig:
    """The new collection; null: as in the run."""

    source: str | None = None
    """A CSV with one row per image, or a folder with one sub-folder per class."""
    image_root: str | None = None
    """Folder that the CSV's paths start from; null: the folder of the CSV."""
    path_column: str | None = None
    """Column of the image paths."""
    label_columns: list[str] | None = None
    """Label column or columns."""
    patient_column: str | None = None
    """Column that says which images belong together."""
    on_unreadable: Literal["error", "skip"] = "error"
    """error: list unreadable images and stop; skip: list them and go on without them."""
    max_pixels: int = 150_000_000
    """A larger picture is refused before it is decoded."""
    allow_outside_root: bool = False
    """Read images whose path, or the target of whose link, leaves the image folder."""
    batch_size: int | None = None
    """Images per step; null: as many as fit and pay."""
    num_workers: int | None = None
    """Processes that prepare batches; null: one per core, at most 8."""


@dataclass(frozen=True)
class EvaluateConfig:
    """Everything `medxfer.evaluate` can be told."""

    run: str | None = None
    """Folder of the finished run."""
    name: str | None = None
    """Name of the evaluation's folder; null: the stem of the source."""
    debug: bool = False
    """Show tracebacks."""
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    """Kind of processor; auto: a GPU where there is one."""
    tracking_uri: str | None = None
    """Tracking server; null: the run's."""
    data: EvaluateDataConfig = field(default_factory=EvaluateDataConfig)


@dataclass(frozen=True)
class PredictConfig:
    """Everything `medxfer.predict` can be told."""

    inputs: list[str] = field(default_factory=list)
    """Images or folders of images."""
    run: str | None = None
    """Folder of the finished run."""
    output: str | None = None
    """The CSV to write."""
    max_pixels: int = 150_000_000
    """A larger picture is refused before it is decoded."""
    batch_size: int | None = None
    """Images per step; null: as many as fit and pay."""
    num_workers: int | None = None
    """Processes that decode; null: one per core, at most 8."""
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    """Kind of processor; auto: a GPU where there is one."""
    debug: bool = False
    """Show tracebacks."""


@dataclass(frozen=True)
class CheckConfig:
    """Everything `medxfer.check` can be told; of a training's YAML file it reads what it shares with it."""

    output: str | None = None
    """Folder of the page; null: <output_dir>/audits/<name of the source>. With scan: the CSV to write."""
    scan: str | None = None
    """A folder of DICOM files to make a table of, instead of an audit."""
    output_dir: str = "runs"
    """Folder that holds the runs and their decoded images."""
    seed: int = 0
    """Seed of the split, as in the training."""
    debug: bool = False
    """Show tracebacks."""
    data: DataConfig = field(default_factory=DataConfig)


@dataclass(frozen=True)
class DemoConfig:
    """Everything `medxfer.demo` can be told."""

    debug: bool = False
    """Show tracebacks."""


@dataclass(frozen=True)
class WeightsConfig:
    """Everything `medxfer.weights` can be told."""

    action: Literal["fetch", "show"] = "show"
    """fetch: download the ImageNet weights; show: say what a source of weights is."""
    weights: str = "imagenet"
    """imagenet, or a path: .pth, .safetensors, a run folder."""
    debug: bool = False
    """Show tracebacks."""
