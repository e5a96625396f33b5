import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from medxfer.errors import CheckpointError
from medxfer.training.callbacks import checkpointing
from medxfer.training.stages import StagePlan
from tests.models.test_transfer import make_net
from tests.training.fixtures import fit


def test_best_holds_weights_only_and_last_everything(tmp_path):
    fit(make_net(outputs=2, freeze_until="all"), tmp_path, plan=StagePlan(2, 0))
    best, last = (torch.load(tmp_path / f"{name}.ckpt", weights_only=True) for name in ("best", "last"))
    assert "optimizer_states" not in best
    assert last["optimizer_states"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["best.ckpt", "last.ckpt"]


def test_keeps_the_last_epochs_on_request(tmp_path):
    fit(make_net(outputs=2, freeze_until="all"), tmp_path, plan=StagePlan(4, 0), keep=2)
    assert sorted(p.name for p in tmp_path.glob("epoch*")) == ["epoch-002.ckpt", "epoch-003.ckpt"]


def test_best_is_the_epoch_with_the_best_score(tmp_path, monkeypatch):
    scores = [(0.6, -0.1), (0.9, -0.5), (0.9, -0.6), (0.7, -0.1)]
    monkeypatch.setattr(checkpointing, "monitored_score", lambda trainer, monitor: scores[trainer.current_epoch])
    weights = []

    class Weights(Callback):
        def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            weights.append(pl_module.net.head.output.weight.detach().clone())

    fit(make_net(outputs=2, freeze_until="all"), tmp_path, Weights(), plan=StagePlan(4, 0))
    best = torch.load(tmp_path / "best.ckpt", weights_only=True)["state_dict"]["net.head.output.weight"]
    assert torch.equal(best, weights[1])


def test_a_clock_saves_within_an_epoch(tmp_path):
    steps = []

    class Watch(Callback):
        def on_train_batch_end(self, trainer: Trainer, *_) -> None:
            if (tmp_path / "last.ckpt").exists():
                steps.append(torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"])

    fit(make_net(outputs=2, freeze_until="all"), tmp_path, Watch(), plan=StagePlan(1, 0), every_minutes=1e-9)
    assert steps == [1, 2, 2]  # the third batch is left to the epoch's end


def test_a_clock_saves_only_behind_optimizer_steps(tmp_path):
    seen = []

    class Watch(Callback):
        def on_train_batch_end(self, trainer: Trainer, pl_module, outputs, batch, batch_idx: int) -> None:
            seen.append((batch_idx, (tmp_path / "last.ckpt").exists()))

    fit(
        make_net(outputs=2, freeze_until="all"), tmp_path, Watch(), plan=StagePlan(1, 0), every_minutes=1e-9,
        accumulate=2,
    )  # fmt: skip
    assert seen == [(0, False), (1, True), (2, True)]


def test_a_file_that_cannot_be_written_leaves_the_one_before(tmp_path, monkeypatch):
    before = {}

    class Full(Callback):
        def on_train_epoch_start(self, trainer: Trainer, *_) -> None:
            if trainer.current_epoch == 1:
                before["last"] = (tmp_path / "last.ckpt").read_bytes()
                monkeypatch.setattr(Trainer, "save_checkpoint", full)

    def full(trainer: Trainer, path, *_, **__) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(CheckpointError, match=r"(?s)could not be saved: .*No space left.*an earlier one .* is intact"):
        fit(make_net(outputs=2, freeze_until="all"), tmp_path, Full(), plan=StagePlan(2, 0))
    assert (tmp_path / "last.ckpt").read_bytes() == before["last"]
    assert not list(tmp_path.glob(".*"))


def test_a_file_that_cannot_be_read_back_never_gets_its_name(tmp_path, monkeypatch):
    def garbled(trainer: Trainer, path, *_, **__) -> None:
        path.write_bytes(b"garbled")

    monkeypatch.setattr(Trainer, "save_checkpoint", garbled)
    with pytest.raises(CheckpointError):
        fit(make_net(outputs=2, freeze_until="all"), tmp_path, plan=StagePlan(1, 0))
    assert list(tmp_path.iterdir()) == []
