"""One run on disk: its paths, its record `run.json`, and its lock. Knows no model and no tracker."""

import csv
import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from medxfer.errors import CheckpointError, ConfigError


class RunFolder:
    """The files of one run.

    Args:
        path: the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"
        self.record = path / "run.json"
        self.split = path / "split.csv"
        self.audit = path / "audit.json"
        self.history = path / "history.csv"
        self.predictions = path / "predictions.csv"
        self.metrics = path / "metrics.json"
        self.checkpoints = path / "checkpoints"
        self.best = self.checkpoints / "best.ckpt"
        self.last = self.checkpoints / "last.ckpt"
        self.figures = path / "figures"
        self.evaluations = path / "evaluations"
        self._lock = FileLock(path / ".lock")

    @staticmethod
    def refuse_existing(path: Path) -> None:
        """Raise a ConfigError if a new run cannot have this folder because it exists."""
        if path.exists():
            raise ConfigError(
                f"the run folder {path} exists: choose another --tracking.run_name, or go on with it: --resume {path}"
            )

    @classmethod
    def create(cls, path: Path) -> "RunFolder":
        """Make the folder of a new run.

        Raises:
            ConfigError: it exists, or cannot be made.
        """
        cls.refuse_existing(path)
        try:
            path.mkdir(parents=True)
        except OSError as error:
            raise ConfigError(f"the run folder {path} cannot be made: {error.strerror}; see output_dir") from error
        run = cls(path)
        run.checkpoints.mkdir()
        run.figures.mkdir()
        return run

    @classmethod
    def open(cls, path: Path) -> "RunFolder":
        """Open the folder of a run that was started before.

        Raises:
            ConfigError: there is none.
        """
        run = cls(path)
        for file in (run.config, run.record):
            if not file.is_file():
                raise ConfigError(f"{path} is not the folder of a run: {file} does not exist")
        return run

    def lock(self) -> FileLock:
        """Return the held lock that keeps a second process out of the folder.

        Raises:
            ConfigError: another process holds it.
        """
        try:
            self._lock.acquire(timeout=0)
        except Timeout as error:
            raise ConfigError(f"another process is working in {self.path}; wait for it or stop it") from error
        return self._lock

    @contextmanager
    def noting_the_end(self) -> Iterator[None]:
        """Note in `run.json` that an exception or Ctrl-C ended the run, and say how to go on."""
        try:
            yield
        except (KeyboardInterrupt, SystemExit):
            self.update_record({"status": "KILLED"})
            self.say_how_to_resume()
            raise
        except BaseException:
            self.update_record({"status": "FAILED"})
            raise

    def say_how_to_resume(self) -> None:
        """Print the command that goes on with this run."""
        print(f"\nstopped; go on with: python -m medxfer.train --resume {self.path}", file=sys.stderr)

    def stages_begun(self) -> set[str]:
        """Return the stages of which `history.csv` has an epoch."""
        if not self.history.is_file():
            return set()
        with self.history.open(newline="", encoding="utf-8") as file:
            return {row["stage"] for row in csv.DictReader(file)}

    def remove_empty(self) -> None:
        """Remove the folder that `create` made, as long as nothing was written to it."""
        self._lock.release()
        (self.path / ".lock").unlink(missing_ok=True)
        for folder in (self.checkpoints, self.figures, self.path):
            folder.rmdir()

    def read_record(self) -> dict[str, Any]:
        """Return what `run.json` holds.

        Raises:
            CheckpointError: it cannot be read.
        """
        try:
            record = json.loads(self.record.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise CheckpointError(f"{self.record} cannot be read: {error}") from error
        if not isinstance(record, dict):
            raise CheckpointError(f"{self.record} must hold one object, found {type(record).__name__}")
        return record

    def update_record(self, values: Mapping[str, Any]) -> None:
        """Change some keys of `run.json`; the file is replaced at once."""
        before = self.read_record() if self.record.is_file() else {}
        write_text(self.record, json.dumps({**before, **values}, indent=2, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text file under a temporary name, then give it its name."""
    temporary = path.with_name(f".{path.name}.writing")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
