import signal

import pytest
from lightning.pytorch import Callback, Trainer

from medxfer.training.callbacks.checkpointing import Checkpointing
from medxfer.training.callbacks.interruption import Interruption, TrainingInterruptedError
from medxfer.training.stages import StagePlan
from tests.models.test_transfer import make_net
from tests.training.fixtures import fit


class Press(Callback):
    """Presses Ctrl-C during a batch of the first epoch."""

    def __init__(self, batch_idx: int, times: int = 1) -> None:
        self.batch_idx = batch_idx
        self.times = times

    def on_train_batch_start(self, trainer: Trainer, pl_module: object, batch: object, batch_idx: int) -> None:
        if batch_idx == self.batch_idx:
            for _ in range(self.times):
                signal.raise_signal(signal.SIGINT)


class Saves(Checkpointing):
    """Counts what it is asked to save."""

    saved = 0

    def save_last(self, trainer: Trainer) -> None:
        self.saved += 1


def interrupted(folder, press: Press) -> int:
    saves = Saves(folder=folder, monitor="val/auroc", every_minutes=0, keep=0)
    with pytest.raises(TrainingInterruptedError):
        fit(
            make_net(outputs=2, freeze_until="all"),
            folder,
            press,
            Interruption(checkpointing=saves),
            plan=StagePlan(2, 0),
        )
    return saves.saved


def test_the_first_press_saves_behind_the_batch_and_ends(tmp_path, capsys):
    before = signal.getsignal(signal.SIGINT)
    assert interrupted(tmp_path, Press(0)) == 1
    assert "stopping after this batch" in capsys.readouterr().out
    assert signal.getsignal(signal.SIGINT) is before


def test_a_press_in_the_last_batch_ends_behind_the_epochs_own_checkpoint(tmp_path):
    assert interrupted(tmp_path, Press(2)) == 0
    assert (tmp_path / "last.ckpt").is_file()


def test_a_second_press_ends_at_once(tmp_path):
    before = signal.getsignal(signal.SIGINT)
    saves = Saves(folder=tmp_path, monitor="val/auroc", every_minutes=0, keep=0)
    interruption = Interruption(checkpointing=saves)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        fit(make_net(outputs=2, freeze_until="all"), tmp_path, Press(0, times=2), interruption, plan=StagePlan(1, 0))
    assert saves.saved == 0
    assert signal.getsignal(signal.SIGINT) is before
