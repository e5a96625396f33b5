import json

import pandas as pd
import pytest
import torch
from lightning.pytorch import Callback, Trainer
from torch.profiler import record_function

from medxfer.models.inception import BLOCK_NAMES
from medxfer.training.callbacks.profiling import Profiling, steps_of
from medxfer.training.stages import StagePlan
from tests.models.test_transfer import make_net
from tests.training.callbacks.test_freezing import Stop
from tests.training.callbacks.test_throughput import Tiny, fit_tiny
from tests.training.fixtures import fit, make_feed


@pytest.mark.parametrize("batches", [*range(1, 12), 1000, float("inf")])
@pytest.mark.parametrize("cycle", [1, 2, 3, 8])
def test_what_is_recorded_fits_in_the_epoch_and_gives_the_optimizer_its_share(batches, cycle):
    skip, warm_up, record = steps_of(batches, cycle=cycle)
    assert skip >= 0
    assert warm_up >= 0
    assert record >= 1
    assert skip + warm_up + record <= batches
    assert record < cycle or record % cycle == 0
    if batches >= 3 + cycle + 5:
        assert (skip, warm_up) == (2, 1)
        assert record >= 5


class Blocks(Tiny):
    """Two blocks, of which the first is frozen."""

    def training_step(self, batch, batch_idx):
        with torch.no_grad(), record_function("block/frozen"):
            x = batch["image"].float().mean(dim=(1, 2, 3))
        with record_function("block/tuned"):
            return (self.weight * x).square().mean()


def fit_blocks(folder, *more, plan, train=48, **settings) -> None:
    profiling = Profiling(folder=folder / "profile", plan=plan)
    feed = make_feed(train=train, val=6)
    fit_tiny(folder, profiling, *more, plan=plan, feed=feed, task=Blocks(), **settings)


def tables(folder) -> dict[str, pd.DataFrame]:
    table = pd.read_csv(folder / "profile/blocks.csv")
    return {name: rows.set_index("block") for name, rows in table.groupby("stage", sort=False)}


def names_in(folder, name: str) -> set[str]:
    return {
        event.get("name") for event in json.loads((folder / f"profile/trace-{name}.json").read_text())["traceEvents"]
    }


def test_a_training_writes_traces_and_a_table_of_all_blocks(tmp_path):
    plan = StagePlan(1, 1)
    net = make_net(outputs=2, freeze_until="Mixed_7a")
    fit(net, tmp_path, Profiling(folder=tmp_path / "profile", plan=plan), plan=plan, feed=make_feed(train=16))
    found = tables(tmp_path)
    assert list(found) == ["head", "finetune", "validation"]
    for name, table in found.items():
        blocks = [block for block in table.index if block in BLOCK_NAMES]
        assert blocks == list(BLOCK_NAMES)
        assert {"head", "data", "other"} <= set(table.index)
        assert ("optimizer" in table.index) == (name != "validation")
        assert table["share"].sum() == pytest.approx(1)
        assert {f"block/{block}" for block in BLOCK_NAMES} <= names_in(tmp_path, name)
    backward = {name: set(table.index[table["backward_ms"] > 0]) for name, table in found.items()}
    assert backward == {"head": {"head"}, "finetune": {"Mixed_7b", "Mixed_7c", "head"}, "validation": set()}
    text = (tmp_path / "profile/blocks.txt").read_text()
    assert text.count("images/s under the profiler; CPU time") == 3
    assert text.count("Mixed_6e") == 3


def test_steps_are_skipped_and_only_a_few_are_recorded(tmp_path):
    fit_blocks(tmp_path, plan=StagePlan(2, 1))
    found = tables(tmp_path)
    assert {name: set(table["steps"]) for name, table in found.items()} == {
        "head": {5}, "finetune": {5}, "validation": {1}
    }  # fmt: skip
    assert {name: set(table["images_per_step"]) for name, table in found.items()} == {
        "head": {4}, "finetune": {4}, "validation": {2}
    }  # fmt: skip
    names = names_in(tmp_path, "head")
    assert {"ProfilerStep#3", "ProfilerStep#7"} <= names
    assert not {"ProfilerStep#2", "ProfilerStep#8"} & names


@pytest.mark.parametrize(("train", "steps"), [(4, 1), (8, 1), (12, 1), (20, 2)])
def test_short_epochs_are_recorded_as_far_as_they_go(tmp_path, train, steps):
    fit_blocks(tmp_path, plan=StagePlan(1, 0), train=train)
    assert set(tables(tmp_path)["head"]["steps"]) == {steps}


def test_an_accumulated_update_has_its_share(tmp_path):
    fit_blocks(tmp_path, plan=StagePlan(1, 0), accumulate=2)
    table = tables(tmp_path)["head"]
    assert set(table["steps"]) == {6}
    trace = json.loads((tmp_path / "profile/trace-head.json").read_text())["traceEvents"]
    steps, clears = (
        [e["dur"] / 1000 for e in trace if e.get("name") == name and e["cat"] == "user_annotation"]
        for name in ("Optimizer.step#SGD.step", "Optimizer.zero_grad#SGD.zero_grad")
    )
    assert len(steps) == 3
    assert sum(clears) / 6 < table.loc["optimizer", "total_ms"] < (sum(clears) + sum(steps)) / 6


def test_a_fit_that_fails_leaves_what_was_recorded_and_its_own_error(tmp_path):
    with pytest.raises(KeyError):
        fit_blocks(tmp_path, Stop(5), plan=StagePlan(1, 1))
    found = tables(tmp_path)
    assert {name: set(table["steps"]) for name, table in found.items()} == {"head": {3}}
    assert "block/tuned" in names_in(tmp_path, "head")


def test_a_fit_that_fails_before_anything_is_recorded_leaves_nothing(tmp_path):
    with pytest.raises(KeyError):
        fit_blocks(tmp_path, Stop(0), plan=StagePlan(1, 1))
    assert not (tmp_path / "profile").exists()


def test_a_fit_that_fails_within_the_first_recorded_step_leaves_its_trace(tmp_path, capsys):
    class Fail(Callback):
        def on_train_batch_start(self, trainer: Trainer, pl_module, batch, batch_idx: int) -> None:
            if batch_idx == 3:
                raise KeyError

    with pytest.raises(KeyError):
        fit_blocks(tmp_path, Fail(), plan=StagePlan(1, 1))
    assert [path.name for path in (tmp_path / "profile").iterdir()] == ["trace-head.json"]
    assert "could not be written" not in capsys.readouterr().out


def test_a_profile_that_cannot_be_written_neither_ends_a_training_nor_hides_its_error(tmp_path, capsys):
    (tmp_path / "profile").write_text("a file, where the folder would be")
    fit_blocks(tmp_path, plan=StagePlan(1, 0))
    assert "the profile (head) could not be written to" in capsys.readouterr().out
    with pytest.raises(KeyError):
        fit_blocks(tmp_path, Stop(5), plan=StagePlan(1, 0))


def test_a_run_resumed_while_finetuning_profiles_that_and_keeps_the_head_stages_table(tmp_path):
    with pytest.raises(KeyError):
        fit_blocks(tmp_path, StopInSecondEpoch(), plan=StagePlan(1, 1), train=20, every_minutes=1e-9)
    before = tables(tmp_path)
    assert list(before) == ["head", "validation"]
    (tmp_path / "profile/trace-head.json").unlink()
    fit_blocks(tmp_path, plan=StagePlan(1, 1), train=20, resume=tmp_path / "last.ckpt")
    after = tables(tmp_path)
    assert list(after) == ["head", "finetune", "validation"]
    pd.testing.assert_frame_equal(after["head"], before["head"])
    assert not (tmp_path / "profile/trace-head.json").exists()
    assert after["validation"].index.is_unique  # measured again, and written over
    assert set(after["finetune"]["steps"]) == {1}  # three of its five batches are left: skipped, warm-up, recorded


class StopInSecondEpoch(Callback):
    """Ends the training behind the second epoch's first two batches, before anything of it is recorded."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        if trainer.current_epoch == 1 and batch_idx == 1:
            raise KeyError


def test_a_trace_names_neither_the_computer_nor_the_users_folders(tmp_path):
    fit_blocks(tmp_path, plan=StagePlan(1, 0))
    text = (tmp_path / "profile/trace-head.json").read_text()
    assert str(tmp_path) not in text
    assert "host_name" not in text
