"""The test's own clock runs: only the loader and the steps take time, so that every figure is known."""

from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers.logger import DummyLogger

from medxfer.config import TrainerConfig
from medxfer.data.datamodule import PictureDataModule
from medxfer.training.callbacks import throughput
from medxfer.training.callbacks.checkpointing import Checkpointing
from medxfer.training.callbacks.throughput import Throughput
from medxfer.training.stages import StagePlan
from medxfer.training.trainer import build_trainer
from tests.training.callbacks.test_freezing import Stop
from tests.training.fixtures import OPTIM, make_feed

WAIT_S, STEP_S, VAL_STEP_S, VAL_END_S, EPOCH_END_S = 2.0, 1.0, 5.0, 100.0, 7.0
EPOCH_S = 3 * (WAIT_S + STEP_S) + 2 * VAL_STEP_S + VAL_END_S + EPOCH_END_S


class Clock:
    """Stands still unless it is told."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(throughput, "time", clock)
    return clock


class SlowLoader:
    """A training loader that takes 2 s for each batch, and says so or not."""

    def __init__(self, loader, clock: Clock, *, counts: bool) -> None:
        self.loader = loader
        self.batch_sampler = loader.batch_sampler  # where Lightning sets the epoch
        self.clock = clock
        self.counts = counts

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self):
        if self.counts:
            self.waited_s = 0.0
        for batch in self.loader:
            self.clock.now += WAIT_S
            if self.counts:
                self.waited_s += WAIT_S
            yield batch

    def state_dict(self):
        return self.loader.state_dict()

    def load_state_dict(self, state) -> None:
        self.loader.load_state_dict(state)


class Work(Callback):
    """Takes 1 s for a training step, 5 s for a validation step, 100 s behind them and 7 s behind the checkpoint."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def on_train_batch_start(self, trainer: Trainer, *_) -> None:
        self.clock.now += STEP_S

    def on_validation_batch_start(self, trainer: Trainer, *_) -> None:
        self.clock.now += VAL_STEP_S

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.clock.now += VAL_END_S

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.clock.now += EPOCH_END_S


class Logged(Callback):
    """Keeps what is logged, in place of MLflow."""

    def __init__(self) -> None:
        self.values: list[tuple[int, dict[str, float]]] = []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        logger = DummyLogger()
        logger.log_metrics = self.keep  # type: ignore[method-assign]
        trainer.loggers = [logger]

    def keep(self, metrics: dict[str, float], step: int) -> None:
        ours = {name: value for name, value in metrics.items() if name.startswith(("throughput/", "seconds/"))}
        if ours:
            self.values.append((step, ours))

    def of(self, name: str) -> list[float]:
        return [values[name] for _, values in self.values if name in values]


def make_slow_feed(clock: Clock, *, counts: bool = True, **settings: int) -> PictureDataModule:
    feed = make_feed(**settings)
    loader = SlowLoader(feed.train_dataloader(), clock, counts=counts)
    feed.train_dataloader = lambda: loader  # type: ignore[method-assign]
    return feed


class Tiny(LightningModule):
    """Nothing to compute: one weight on the pictures' mean."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))

    def training_step(self, batch, batch_idx):
        return (self.weight * batch["image"].float().mean()).sum()

    def validation_step(self, batch, batch_idx) -> None:
        self.log_dict({"val/loss": 1.0, "val/auroc": 0.5}, batch_size=len(batch["row"]))

    def configure_optimizers(self):
        return torch.optim.SGD([{"params": [self.weight], "name": "head/weights"}], lr=1e-3)


def fit_tiny(folder, *callbacks, plan, feed, task=None, accumulate=1, every_minutes=0.0, resume=None) -> None:
    trainer = build_trainer(
        TrainerConfig(accelerator="cpu", accumulate=accumulate),
        optim=OPTIM,
        precision="32-true",
        logger=None,
        callbacks=[
            Checkpointing(folder=folder, monitor="val/auroc", every_minutes=every_minutes, keep=0),
            *callbacks,
        ],
        max_epochs=plan.total_epochs,
        progress_bar=None,
    )
    trainer.fit(task or Tiny(), datamodule=feed, ckpt_path=resume, weights_only=True)


def measure(folder, clock, *more, plan=None, feed=None, **settings) -> Logged:
    plan = plan or StagePlan(1, 0)
    logged = Logged()
    feed = feed or make_slow_feed(clock)
    fit_tiny(folder, logged, Throughput(plan=plan), Work(clock), *more, plan=plan, feed=feed, **settings)
    return logged


@pytest.mark.parametrize("accumulate", [1, 2])
def test_images_of_an_uneven_epoch_over_the_seconds_of_its_training_part(tmp_path, clock, accumulate):
    feed = make_slow_feed(clock, train=10, val=6)
    logged = measure(tmp_path, clock, plan=StagePlan(1, 1), feed=feed, accumulate=accumulate)
    training_s = 3 * (WAIT_S + STEP_S)
    assert logged.of("throughput/images_per_second") == pytest.approx([10 / training_s] * 2)
    assert logged.of("throughput/wait_share") == pytest.approx([3 * WAIT_S / training_s] * 2)
    assert logged.of("throughput/val_images_per_second") == pytest.approx([6 / (2 * VAL_STEP_S)] * 2)
    steps = [step for step, values in logged.values if "throughput/wait_share" in values]
    assert steps == ([3, 6] if accumulate == 1 else [2, 4])


def test_without_the_loaders_count_the_share_is_unknown_and_not_nothing(tmp_path, clock):
    logged = measure(tmp_path, clock, feed=make_slow_feed(clock, counts=False))
    assert logged.of("throughput/images_per_second")
    assert not logged.of("throughput/wait_share")


def test_seconds_of_each_stage_when_it_ends_and_when_the_fit_ends(tmp_path, clock):
    logged = measure(tmp_path, clock, plan=StagePlan(2, 1))
    seconds = [(step, values) for step, values in logged.values if "seconds/head" in values]
    assert seconds == [
        (6, {"seconds/head": pytest.approx(2 * EPOCH_S)}),
        (9, {"seconds/head": pytest.approx(2 * EPOCH_S), "seconds/finetune": pytest.approx(EPOCH_S)}),
    ]


def test_a_run_resumed_in_mid_epoch_measures_the_rest_and_reports_the_whole_stage(tmp_path, clock):
    """Lightning does not announce the epoch again then."""
    with pytest.raises(KeyError):
        measure(tmp_path, clock, Stop(1), every_minutes=1e-9)
    clock.now += 5000  # nobody works on it
    logged = measure(tmp_path, clock, resume=tmp_path / "last.ckpt")
    assert logged.of("throughput/images_per_second") == pytest.approx([4 / (WAIT_S + STEP_S)])
    assert logged.of("throughput/wait_share") == pytest.approx([WAIT_S / (WAIT_S + STEP_S)])
    assert logged.of("seconds/head") == pytest.approx([EPOCH_S])


def test_a_run_resumed_between_stages_reports_both(tmp_path, clock):
    class StopInFinetune(Callback):
        def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            if trainer.current_epoch == 1:
                raise KeyError

    plan = StagePlan(1, 1)
    with pytest.raises(KeyError):
        measure(tmp_path, clock, StopInFinetune(), plan=plan)
    logged = measure(tmp_path, clock, plan=StagePlan(1, 1), resume=tmp_path / "last.ckpt")
    assert logged.of("seconds/head") == pytest.approx([EPOCH_S - EPOCH_END_S])  # the rest is behind the checkpoint
    assert logged.of("seconds/finetune") == pytest.approx([EPOCH_S])


def test_the_figures_are_complete_at_the_epochs_end_for_callbacks_before_it_too(tmp_path, clock):
    seen, early = [], []
    plan = StagePlan(2, 0)
    measured = Throughput(plan=plan)

    class Read(Callback):
        def on_train_batch_start(self, trainer: Trainer, *_) -> None:
            early.append(measured.figures)

        def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            seen.append(measured.figures)

    fit_tiny(tmp_path, Read(), measured, Work(clock), plan=plan, feed=make_slow_feed(clock))
    expected = {"images_per_second": 12 / 9, "wait_share": 6 / 9, "val_images_per_second": 6 / 10}
    assert seen == [pytest.approx(expected)] * 2
    assert early == [{}] * 6  # never an earlier epoch's


class Strategy:
    """Several processes: this one and another."""

    def __init__(self, *other: float) -> None:
        self.other = torch.tensor(other or [0.0, 0.0, 0.0], dtype=torch.float64)

    def reduce(self, tensor, *, reduce_op):
        assert reduce_op == "sum"
        return tensor + self.other


def one_batch(clock: Clock, *, device: str = "cpu", processes: int = 1, strategy: Strategy) -> dict[str, float]:
    """What an epoch of one batch gives: 8 images in 9 s, of which 6 s waiting."""
    trainer = SimpleNamespace(
        current_epoch=0,
        is_last_batch=True,
        train_dataloader=SimpleNamespace(waited_s=6.0),
        strategy=strategy,
        world_size=processes,
    )
    module = SimpleNamespace(device=torch.device(device))
    measured = Throughput(plan=StagePlan(1, 0))
    measured.on_train_start(trainer, module)
    clock.now += 9.0
    measured.on_train_batch_end(trainer, module, None, {"row": torch.arange(8)}, 0)
    return measured.figures


def test_images_of_all_processes_count(clock):
    """The other one sees 2 images, and waits all the time of its 11 s."""
    figures = one_batch(clock, processes=2, strategy=Strategy(2, 11, 11))
    assert figures == pytest.approx({"images_per_second": 10 / 10, "wait_share": 17 / 20})


def test_a_gpu_is_waited_for_before_the_clock_is_read(clock, monkeypatch):
    """Kernels are asynchronous: an epoch's last ones still run when its last batch has been launched."""

    def synchronize(device: torch.device) -> None:
        clock.now += 3.0

    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    monkeypatch.setattr(torch.Tensor, "to", lambda tensor, *_, **__: tensor)
    figures = one_batch(clock, device="cuda", strategy=Strategy())
    assert figures == pytest.approx({"images_per_second": 8 / 12, "wait_share": 6 / 12})
