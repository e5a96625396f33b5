"""One MLflow run per training. Nothing else in medxfer knows MLflow."""

import errno
import hashlib
import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("DO_NOT_TRACK", "true")

from filelock import FileLock
from lightning.pytorch.loggers import MLFlowLogger
from lightning.pytorch.utilities import rank_zero_only
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Param, RunTag
from mlflow.environment_variables import MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL
from mlflow.exceptions import MlflowException
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor
from sqlalchemy.exc import SQLAlchemyError

from medxfer.config import TrackingConfig
from medxfer.errors import ConfigError
from medxfer.tracking.privacy import shareable_uri, without_secrets

MAX_PARAM_LENGTH = 500
SQLITE = "sqlite:///"
SAMPLING_SECONDS = 10


class RunLogger(MLFlowLogger):
    """Lightning's MLflow logger for a run that exists already and that Lightning may not finish.

    Lightning would mark the run FINISHED behind `fit`, before the test.
    """

    @rank_zero_only
    def finalize(self, status: str = "success") -> None:
        """Leave the status alone: `MlflowRun.finish` sets it once everything is logged."""


class MlflowRun:
    """A run in an MLflow store.

    Args:
        client: of the store.
        uri: of the store.
        run_id: of the run.
        experiment: its experiment's name.
    """

    def __init__(self, client: MlflowClient, *, uri: str, run_id: str, experiment: str) -> None:
        self.client = client
        self.uri = uri
        self.run_id = run_id
        self.logger = RunLogger(experiment_name=experiment, tracking_uri=uri, run_id=run_id)
        self._monitor: SystemMetricsMonitor | None = None

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Log parameters, each value as text of at most 500 characters; MLflow keeps the first value of a name."""
        entries = [Param(_key(name), str(value)[:MAX_PARAM_LENGTH]) for name, value in params.items()]
        for start in range(0, len(entries), 100):
            self.client.log_batch(self.run_id, params=entries[start : start + 100])

    def params(self) -> dict[str, str]:
        """Return the parameters that were logged."""
        return dict(self.client.get_run(self.run_id).data.params)

    def set_tags(self, tags: Mapping[str, Any]) -> None:
        """Set tags."""
        self.client.log_batch(self.run_id, tags=[RunTag(_key(name), str(value)) for name, value in tags.items()])

    def log_metrics(self, metrics: Mapping[str, float], *, step: int = 0) -> None:
        """Log numbers; characters that MLflow refuses in a name become `_`."""
        self.logger.log_metrics({_key(name): value for name, value in metrics.items()}, step=step)

    def log_dataset(self, *, name: str, digest: str, profile: str, context: str) -> None:
        """Record which data were used, by digest and size, without their place."""
        dataset = Dataset(name=name, digest=digest[:36], source_type="local", source=name, profile=profile)
        self.client.log_inputs(self.run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", context)])])

    def log_files(self, files: Sequence[Path], *, folder: str | None = None) -> None:
        """Upload files."""
        for file in files:
            self.client.log_artifact(self.run_id, str(file), folder)

    def log_text(self, text: str, name: str) -> None:
        """Upload a text as a file of that name."""
        self.client.log_text(self.run_id, text, name)

    def watch_system(self, *, resumed: bool) -> None:
        """Log processor, memory, disk, network and GPU use from now on."""
        seconds = MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL.get() or SAMPLING_SECONDS
        self._monitor = SystemMetricsMonitor(
            self.run_id, sampling_interval=seconds, resume_logging=resumed, tracking_uri=self.uri
        )
        self._monitor.start()

    @contextmanager
    def ending_as(self, status: str, *, interrupted: str) -> Iterator[None]:
        """End the run with a status when an exception leaves the block, and with another when Ctrl-C does."""
        try:
            yield
        except (KeyboardInterrupt, SystemExit):
            self.finish(interrupted)
            raise
        except BaseException:
            self.finish(status)
            raise

    def finish(self, status: str) -> None:
        """End the run as FINISHED, FAILED or KILLED."""
        if self._monitor is not None:
            self._monitor.finish()
            self._monitor = None
        self.client.set_terminated(self.run_id, status)


def resolve_uri(config: TrackingConfig, output_dir: Path) -> str:
    """Return the address of the store: the config's, MLFLOW_TRACKING_URI's, or a SQLite file in the output folder."""
    return config.uri or os.environ.get("MLFLOW_TRACKING_URI") or f"{SQLITE}{(output_dir / 'mlflow.db').resolve()}"


def build_run(
    config: TrackingConfig,
    *,
    output_dir: Path,
    name: str,
    run_id: str | None = None,
    uri: str | None = None,
    parent: str | None = None,
) -> MlflowRun:
    """Start a run in the store, or go on with one.

    Args:
        config: address, experiment and tags.
        output_dir: where the default store lies.
        name: of the run.
        run_id: of the run to go on with; None: a new one.
        uri: where that run is, unless the config names a store.
        parent: run id that a new one is nested in.

    Raises:
        ConfigError: the store cannot be used.
    """
    for noisy in ("mlflow", "alembic"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    uri = config.uri or uri or resolve_uri(config, output_dir)
    try:
        client = _open(uri)
        experiment = client.get_experiment_by_name(config.experiment)
        if run_id is not None:
            client.get_run(run_id)
            client.update_run(run_id, status="RUNNING")
        else:
            experiment_id = experiment.experiment_id if experiment else _experiment(client, config, uri, output_dir)
            # Given here, these two keep MLflow from filling in the user and the script.
            tags = {"mlflow.user": "", "mlflow.source.name": "medxfer", "mlflow.source.type": "LOCAL", **config.tags}
            if parent is not None:
                tags["mlflow.parentRunId"] = parent
            run_id = client.create_run(experiment_id, run_name=name, tags=tags).info.run_id
    # ImportError: a database's driver; ValueError: no address
    except (MlflowException, SQLAlchemyError, ImportError, OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error).splitlines()[0]
        reason = without_secrets(reason.replace(uri, shareable_uri(uri)))
        raise ConfigError(
            f"the MLflow store {shareable_uri(uri)} cannot be used: {reason}\ncheck tracking.uri or MLFLOW_TRACKING_URI"
        ) from error
    return MlflowRun(client, uri=uri, run_id=run_id, experiment=config.experiment)


def _open(uri: str) -> MlflowClient:
    if not uri.startswith(SQLITE):
        return MlflowClient(uri)
    file = Path(uri.removeprefix(SQLITE).partition("?")[0])
    if file.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    file.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(file.with_name(f".{file.name}.lock")):  # two processes creating its tables at once fail
        client = MlflowClient(uri)
        client.search_experiments(max_results=1)
    return client


def _experiment(client: MlflowClient, config: TrackingConfig, uri: str, output_dir: Path) -> str:
    location = (output_dir / "mlartifacts").resolve().as_uri() if uri.startswith(SQLITE) else None
    try:
        return client.create_experiment(config.experiment, artifact_location=location)
    except MlflowException:
        made = client.get_experiment_by_name(config.experiment)  # by another process in the meantime
        if made is None:
            raise
        return made.experiment_id


def _key(name: str) -> str:
    """Return a name that MLflow takes everywhere; one that had to be changed gets a digest, so that it stays unique.

    >>> _key("test/auroc/nevus")
    'test/auroc/nevus'
    >>> _key("test/auroc/Nävus")
    'test/auroc/N_vus-6f2bb1'
    """
    parts = name.split("/")
    slug = "/".join(re.sub(r"[^A-Za-z0-9_. -]", "_", part) if part.strip(".") else "_" for part in parts)
    return slug if slug == name else f"{slug}-{hashlib.sha256(name.encode()).hexdigest()[:6]}"
