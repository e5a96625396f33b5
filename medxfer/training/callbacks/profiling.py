"""`--profile`: a Chrome trace of a few steps of each stage, and a table of where their time went, block by block."""

import json
import math
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.profiler import ProfilerActivity, profile, schedule

from medxfer.training.block_table import block_table, describe
from medxfer.training.stages import StagePlan

SKIP, WARM_UP, RECORD = 2, 1, 5
"""Steps that are let pass, that warm the profiler up, and that are recorded."""

STAGES = ("head", "finetune", "validation")


@dataclass
class Recording:
    """What is being recorded: `profiler` steps from `first` on, `planned` of them; `steps` and `images` so far."""

    name: str
    profiler: profile
    first: int
    planned: int
    device: str
    steps: int = 0
    images: int = 0


class Profiling(Callback):
    """Records the first steps of each stage that this fit runs, and of its first validation.

    Writes `trace-head.json`, `trace-finetune.json` and `trace-validation.json` for chrome://tracing or Perfetto, and
    the table of `block_table` for all of them as `blocks.csv` and `blocks.txt`; what an earlier part of the run wrote
    of another stage stays. An epoch that is too short for all steps is recorded as far as it goes, and so is a fit that
    ends early. The profiler slows the recorded steps down: the figures show where time goes, not how fast a run is.

    It must stand before other callbacks, so that their work belongs to the next step, as waiting for data does.

    Args:
        folder: where the files go; made when there is something to write.
        plan: the stages.
    """

    def __init__(self, *, folder: Path, plan: StagePlan) -> None:
        self.folder = folder
        self.plan = plan
        self._begun: set[str] = set()
        self._recording: Recording | None = None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Begin with a stage; not at the epoch's start, which a run that is resumed in mid-epoch does not have."""
        stage = self.plan.stage(trainer.current_epoch)
        left = trainer.num_training_batches - batch_idx
        self._begin(stage, trainer, pl_module, batches=left, cycle=trainer.accumulate_grad_batches)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """End a step."""
        self._step(trainer, images=len(batch["row"]))

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Begin with the first validation."""
        if not trainer.sanity_checking:
            self._begin("validation", trainer, pl_module, batches=trainer.num_val_batches[0] - batch_idx, cycle=1)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """End a step."""
        self._step(trainer, images=len(batch["row"]))

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End what training left open, where an epoch was shorter than announced."""
        self._finish(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End what validation left open."""
        self._finish(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Write what there is."""
        self._finish(trainer)

    def _begin(self, name: str, trainer: Trainer, pl_module: LightningModule, *, batches: float, cycle: int) -> None:
        if self._recording is not None or name in self._begun or not trainer.is_global_zero:
            return
        self._begun.add(name)
        skip, warm_up, record = steps_of(batches, cycle=cycle)
        device = pl_module.device.type
        activities = [ProfilerActivity.CPU]
        if device == "cuda":
            activities.append(ProfilerActivity.CUDA)
        else:
            os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # a torch built for GPUs would tell that there is none
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Profiler won't be using warmup")  # in an epoch of one batch
            steps = schedule(skip_first=skip, wait=0, warmup=warm_up, active=record, repeat=1)
        profiler = profile(activities=activities, schedule=steps, record_shapes=True)
        self._recording = Recording(name, profiler, first=skip + warm_up, planned=record, device=device)
        profiler.start()

    def _step(self, trainer: Trainer, *, images: int) -> None:
        recording = self._recording
        if recording is None:
            return
        if recording.profiler.step_num >= recording.first:
            recording.steps += 1
            recording.images += images
        elif recording.device == "cuda":
            torch.cuda.synchronize()  # or the kernels of steps before would run in the first one recorded
        recording.profiler.step()
        if recording.steps == recording.planned:
            self._finish(trainer)

    def _finish(self, trainer: Trainer) -> None:
        recording, self._recording = self._recording, None
        if recording is None:
            return
        bar = trainer.progress_bar_callback
        say = bar.print if bar is not None else print
        try:
            recording.profiler.stop()
            self._write(recording)
            say(f"profile ({recording.name}, steps: {recording.steps}): {self.folder}")
        except Exception as error:  # a profile must neither end a training nor hide why one ended
            say(f"the profile ({recording.name}) could not be written to {self.folder}: {error}")

    def _write(self, recording: Recording) -> None:
        if recording.profiler.step_num < recording.first:
            return  # nothing is recorded yet
        self.folder.mkdir(parents=True, exist_ok=True)
        trace = self.folder / f"trace-{recording.name}.json"
        recording.profiler.export_chrome_trace(str(trace))
        _make_shareable(trace)
        if not recording.steps:
            return
        table = block_table(recording.profiler.events() or [], steps=recording.steps, images=recording.images)
        table.insert(0, "stage", recording.name)
        file = self.folder / "blocks.csv"
        if file.is_file():
            before = pd.read_csv(file)
            table = pd.concat([before[before["stage"] != recording.name], table], ignore_index=True)
        stages = list(table["stage"])
        table = table.iloc[sorted(range(len(table)), key=lambda row: STAGES.index(stages[row]))]
        table.to_csv(file, index=False)
        texts = [describe(pd.DataFrame(rows)) for _, rows in table.groupby("stage", sort=False)]
        file.with_suffix(".txt").write_text("\n\n".join(texts) + "\n", encoding="utf-8")


def steps_of(batches: float, *, cycle: int) -> tuple[int, int, int]:
    """Return how many steps to skip, to warm up in and to record.

    Args:
        batches: left in the epoch, at least 1.
        cycle: batches for each step of the optimizer; whole cycles are recorded, so that it has its share.

    Example:
        >>> steps_of(100, cycle=1), steps_of(100, cycle=4), steps_of(3, cycle=1), steps_of(1, cycle=1)
        ((2, 1, 5), (2, 1, 8), (1, 1, 1), (0, 0, 1))
    """
    warm_up = int(min(WARM_UP, batches - 1))
    skip = int(min(SKIP, batches - 1 - warm_up))
    record = int(min(cycle * math.ceil(RECORD / cycle), batches - skip - warm_up))
    return skip, warm_up, record - record % cycle if record > cycle else record


def _make_shareable(trace: Path) -> None:
    """Take the computer's name and the file's own path out of a trace: it may be uploaded or sent to others."""
    content = json.loads(trace.read_text(encoding="utf-8"))
    for name in ("host_name", "traceName"):
        content.pop(name, None)
    trace.write_text(json.dumps(content, separators=(",", ":")), encoding="utf-8")
