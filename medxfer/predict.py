"""Predict: `python -m medxfer.predict --run runs/NAME IMAGE_OR_FOLDER... --output predictions.csv`."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader

from medxfer.config import PredictConfig
from medxfer.data.datamodule import cores
from medxfer.data.files import FileStream, collate_files, expand_inputs
from medxfer.errors import ConfigError, listed
from medxfer.parsing import parse_config
from medxfer.results import FinishedRun, PredictionWriter
from medxfer.training.trainer import build_predictor, limit_threads, uses_gpu
from medxfer.validation import feeding_faults
from medxfer.verbs import run_verb

READ: dict[str, Any] = {
    "prog": "python -m medxfer.predict",
    "description": "Apply a finished run to images, folders of images and DICOM files.",
    "positional": "inputs",
    "metavar": "IMAGE_OR_FOLDER",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb and return its exit code."""
    return run_verb(lambda arguments: parse_config(PredictConfig, arguments, **READ), predict, argv)


def predict(config: PredictConfig) -> int:
    """Write one row per image: its probabilities, the decision at the run's threshold, and a status.

    Memory does not grow with the number of images but for the list of their names.

    Returns:
        0, or 1 when an image could not be read; its row holds the reason.

    Raises:
        MedxferError: a mistake of the user's; nothing is written.
    """
    if not config.run or not config.inputs or not config.output:
        raise ConfigError("--run RUN_FOLDER, at least one image or folder, and --output CSV are needed")
    faults = list(feeding_faults(config.batch_size, config.num_workers))
    if faults:
        raise ConfigError(listed("the settings cannot be used:", faults))
    output = Path(config.output)
    if output.exists():
        raise ConfigError(f"{output} exists: choose another --output, or remove it")
    if not output.parent.is_dir():
        raise ConfigError(f"the folder of --output does not exist: {output.parent}")
    run = FinishedRun.open(Path(config.run))
    files = expand_inputs([Path(name) for name in config.inputs])
    on_gpu = uses_gpu(config.accelerator)
    limit_threads(cores())
    workers = config.num_workers if config.num_workers is not None else min(cores(), 8)
    stream = FileStream(files, run.settings(config.max_pixels), workers=workers)
    batch_size = config.batch_size or run.largest_batch(on_gpu=on_gpu)
    loader = DataLoader(stream, batch_size=batch_size, collate_fn=collate_files, pin_memory=on_gpu)
    with PredictionWriter(output, files=files, run=run) as writer:
        trainer = build_predictor(accelerator=config.accelerator, precision=run.record["precision"], callbacks=[writer])
        trainer.predict(run.task(), loader, return_predictions=False)
    print(f"{writer.written} images predicted, {writer.failed} unreadable: {output}")
    return 1 if writer.failed else 0


if __name__ == "__main__":
    sys.exit(main())
