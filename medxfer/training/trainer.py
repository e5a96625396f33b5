"""Lightning's Trainer for one fit, and the arithmetic it runs in."""

import logging
import sys
import warnings
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.loggers import Logger

from medxfer.config import OptimConfig, TrainerConfig
from medxfer.errors import ConfigError

Precision = Literal["32-true", "bf16-mixed"]

AMP: dict[Precision, torch.dtype | None] = {"32-true": None, "bf16-mixed": torch.bfloat16}
"""The type of autocast, where it is on."""

SMALL_BATCH = 32
"""Up to this many images per step a GPU waits for the program that starts its kernels, which CUDA graphs avoid."""


def uses_gpu(accelerator: str) -> bool:
    """Return whether a choice of accelerator ends on a GPU of this machine.

    Raises:
        ConfigError: a GPU is asked for where there is none.
    """
    available = torch.cuda.is_available()
    if accelerator == "gpu" and not available:
        raise ConfigError("a GPU was asked for, and PyTorch finds no CUDA GPU here: choose auto or cpu as accelerator")
    return available and accelerator != "cpu"


def resolve_precision(precision: str, *, on_gpu: bool) -> Precision:
    """Return the arithmetic of a choice; auto: bf16 where the processor multiplies it natively, else 32."""
    if precision == "auto":
        if on_gpu:
            native = torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
        else:
            capabilities = torch.backends.cpu.get_cpu_capability()
            native = capabilities.startswith("AVX512") and torch.cpu._is_avx512_bf16_supported()
        precision = "bf16" if native else "32"
    return "bf16-mixed" if precision == "bf16" else "32-true"


def compiler_options(batch_size: int, *, on_gpu: bool) -> dict[str, Any]:
    """Return the options of `torch.compile` that pay for a batch on this kind of processor."""
    return {"mode": "reduce-overhead"} if on_gpu and batch_size <= SMALL_BATCH else {}


def limit_threads(cores: int) -> None:
    """Compute with at most as many threads as a process may use cores; fewer, where OMP_NUM_THREADS says so."""
    torch.set_num_threads(min(torch.get_num_threads(), cores))


def quiet_lightning() -> None:
    """Silence Lightning's advertisements, and its warnings about what medxfer does on purpose."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=r"Found \d+ module\(s\) in eval mode", module="lightning.pytorch")
    warnings.filterwarnings("ignore", message=r"`isinstance\(treespec, LeafSpec\)`", category=FutureWarning)
    warnings.filterwarnings("ignore", message=r"The '\w+_dataloader' does not have many workers")


def build_predictor(*, accelerator: str, precision: Precision, callbacks: list[Callback] | None = None) -> Trainer:
    """Build a trainer that only predicts, on one device, in a run's own arithmetic."""
    quiet_lightning()
    return Trainer(
        accelerator="cuda" if uses_gpu(accelerator) else "cpu",
        devices=1,
        precision=precision,
        deterministic=True,
        logger=False,
        callbacks=callbacks,
        enable_progress_bar=sys.stdout.isatty(),
        enable_checkpointing=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )


def build_trainer(
    config: TrainerConfig,
    *,
    optim: OptimConfig,
    precision: Precision,
    logger: Logger | None,
    callbacks: list[Callback],
    max_epochs: int,
    progress_bar: TQDMProgressBar | None,
) -> Trainer:
    """Build the trainer.

    Args:
        config: machines.
        optim: gradient clipping.
        precision: resolved once per run.
        logger: of the run.
        callbacks: in the order in which they act.
        max_epochs: of all stages.
        progress_bar: None: no bar.
    """
    quiet_lightning()
    return Trainer(
        accelerator="cuda" if uses_gpu(config.accelerator) else "cpu",
        devices=1,
        precision=precision,
        max_epochs=max_epochs,
        accumulate_grad_batches=config.accumulate,
        gradient_clip_val=optim.gradient_clip or None,
        deterministic=config.deterministic,
        logger=logger if logger is not None else False,
        callbacks=[*callbacks, *([progress_bar] if progress_bar is not None else [])],
        enable_progress_bar=progress_bar is not None,
        enable_checkpointing=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        log_every_n_steps=1,
    )
