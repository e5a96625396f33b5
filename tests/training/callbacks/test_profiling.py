import json
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from lightning.pytorch import Callback, Trainer
from torch import nn
from torch.autograd.profiler_util import Interval
from torch.profiler import ProfilerActivity, profile, record_function, schedule

from medxfer.models.inception import BLOCK_NAMES
from medxfer.training.block_table import block_table
from medxfer.training.callbacks.profiling import Profiling, steps_of
from medxfer.training.stages import StagePlan
from tests.models.test_transfer import make_net
from tests.training.callbacks.test_freezing import Stop
from tests.training.callbacks.test_throughput import Tiny, fit_tiny
from tests.training.fixtures import fit, make_feed


def event(name, start, end, *, thread=1, number=-1, device="CPU", launches=(), annotation=False):
    """An event as torch's profiler gives it, times in ms; what it launches takes that long on the GPU."""
    return SimpleNamespace(
        name=name, time_range=Interval(1000 * start, 1000 * end), thread=thread, fwd_thread=1, sequence_nr=number,
        device_type=SimpleNamespace(name=device), is_async=False, cpu_parent=None, is_user_annotation=annotation,
        kernels=[SimpleNamespace(duration=1000 * launch) for launch in launches],
    )  # fmt: skip


def span(name, start, end, **more):
    return event(name, start, end, annotation=True, **more)


def nested(*events):
    """Set the parents: of those around an event in its thread, the shortest."""
    for inner in events:
        around = [
            outer for outer in events
            if outer is not inner and outer.thread == inner.thread and outer.device_type.name == "CPU"
            and outer.time_range.start <= inner.time_range.start and inner.time_range.end <= outer.time_range.end
        ]  # fmt: skip
        if inner.device_type.name == "CPU" and around:
            inner.cpu_parent = min(around, key=lambda outer: outer.time_range.elapsed_us())
    return events


def spent(table: pd.DataFrame) -> dict[str, float]:
    """Milliseconds that make sense, by block and column."""
    rows = table.set_index("block")[["forward_ms", "backward_ms", "total_ms"]]
    return {f"{block} {name.removesuffix('_ms')}": value for (block, name), value in rows.stack().dropna().items()}


def test_a_trace_by_hand():
    """One step of 100 ms; the update runs behind forward and backward pass, inside the optimizer's step."""
    back = "autograd::engine::evaluate_function: "
    events = nested(
        span("ProfilerStep*", 0, 100),
        span("block/data", 0, 10),
        span("enumerate(DataLoader)#_SingleProcessDataLoaderIter.__next__", 0, 9),
        span("Optimizer.step#AdamW.step", 10, 95),
        span("block/frozen", 12, 22),
        event("aten::conv2d", 13, 20),
        event("aten::to", 20, 21, number=5),  # makes no node: it shows the number of the next one
        span("block/tuned", 22, 42),
        event("aten::conv2d", 24, 40, number=5),
        event("aten::convolution", 25, 39, number=5),
        event("aten::relu", 40, 41, number=6),
        event("aten::mean", 43, 45, number=7),
        span("Optimizer.zero_grad#AdamW.zero_grad", 46, 48),
        event(f"{back}torch::autograd::GraphRoot", 49, 50),
        event(f"{back}MeanBackward0", 50, 52, number=7),
        event(f"{back}ReluBackward0", 52, 56, number=6),
        event(f"{back}ConvolutionBackward0", 56, 76, number=5),
        event("ConvolutionBackward0", 57, 75, number=5),
        event("aten::convolution_backward", 58, 74),
        event(f"{back}torch::autograd::AccumulateGrad", 76, 78),
        event("aten::_fused_adamw_", 80, 94),
    )
    table = block_table(events, steps=1, images=8)
    assert spent(table) == pytest.approx(
        {"frozen forward": 10, "frozen backward": 0, "frozen total": 10,
         "tuned forward": 20, "tuned backward": 26, "tuned total": 46,
         "optimizer total": 19, "data total": 10, "other total": 15}
    )  # fmt: skip
    assert table["share"].tolist() == pytest.approx([0.10, 0.46, 0.19, 0.10, 0.15])
    assert table["images_per_second"].tolist() == pytest.approx([800, 8 / 0.046, 8 / 0.019, 800, 8 / 0.015])
    assert set(table["device"]) == {"cpu"}


def test_a_gpus_trace_by_hand():
    """Kernels run later than they are launched, the backward pass in a thread of its own; a step lasts until the last.

    The GPU works from 15 to 35 and from 50 to 120, so that all of the first wait and 10 ms of the second are idle.
    """
    back = "autograd::engine::evaluate_function: "
    on_gpu = {"device": "CUDA", "thread": 7}
    events = nested(
        span("ProfilerStep*", 0, 100),
        span("block/data", 0, 5),
        span("enumerate(DataLoader)#_Iter.__next__", 1, 4),
        span("Optimizer.step#AdamW.step", 5, 40),
        span("block/a", 6, 10, launches=[30]),  # a span launches nothing itself
        event("aten::conv2d", 7, 8, number=1, launches=[18]),
        event("aten::mean", 11, 12, number=2, launches=[2]),
        event(f"{back}MeanBackward0", 20, 22, number=2, thread=2),
        event("aten::div", 20, 21, thread=2, launches=[3]),
        event(f"{back}ConvolutionBackward0", 22, 30, number=1, thread=2),
        event("aten::convolution_backward", 23, 29, thread=2, launches=[30, 10]),
        event("aten::_fused_adamw_", 35, 39, launches=[17]),
        span("enumerate(DataLoader)#_Iter.__next__", 40, 55),
        event("kernels", 15, 35, **on_gpu),
        event("kernels", 50, 110, **on_gpu),
        event("kernel of a graph", 110, 120, **on_gpu),
        span("block/a", 15, 110, **on_gpu),
        event("block/a", 15, 110, **on_gpu),
    )
    table = block_table(events, steps=1, images=8)
    assert spent(table) == pytest.approx(
        {"a forward": 18, "a backward": 40, "a total": 58, "optimizer total": 17, "data total": 15, "other total": 15,
         "idle total": 15}
    )  # fmt: skip
    assert table["total_ms"].sum() == pytest.approx(120)
    assert set(table["device"]) == {"gpu"}


def test_time_belongs_to_the_innermost_block():
    """Activation checkpointing runs a block's forward pass within its backward pass."""
    events = nested(
        span("ProfilerStep*", 0, 20), span("block/a", 0, 10), event("aten::relu", 8, 9, number=1),
        span("block/b", 2, 5), event("autograd::engine::evaluate_function: ReluBackward0", 12, 18, number=1),
        span("block/a", 13, 17),
    )  # fmt: skip
    assert spent(block_table(events, steps=1, images=1)) == pytest.approx(
        {"a forward": 7 + 4, "a backward": 2, "a total": 13, "b forward": 3, "b backward": 0, "b total": 3,
         "other total": 4}
    )  # fmt: skip


def test_only_complete_steps_count():
    events = nested(
        span("ProfilerStep*", 0, 10), span("block/a", 0, 4), span("ProfilerStep*", 10, 20), span("block/a", 10, 16),
        span("ProfilerStep*", 20, 25), span("block/a", 20, 24),
    )  # fmt: skip
    table = block_table(events, steps=2, images=6)
    assert spent(table) == pytest.approx({"a forward": 5, "a backward": 0, "a total": 5, "other total": 5})
    assert set(table["images_per_step"]) == {3}


def test_torchs_own_trace_of_two_blocks_of_which_one_is_frozen(tmp_path):
    """Against sums over torch's events that do not use the tree."""
    frozen, tuned = nn.Linear(256, 256), nn.Linear(256, 256)
    head = nn.Linear(256, 1)
    optimizer = torch.optim.SGD([*tuned.parameters(), *head.parameters()], lr=0.1)
    x = torch.randn(64, 256)

    def closure():
        with torch.no_grad(), record_function("block/frozen"):
            y = frozen(x).relu()
        with record_function("block/tuned"):
            y = tuned(y).relu()
        with record_function("block/head"):
            loss = head(y).square().mean()
        optimizer.zero_grad()
        loss.backward()
        return loss

    with profile(
        activities=[ProfilerActivity.CPU], schedule=schedule(wait=0, warmup=1, active=3, repeat=1)
    ) as profiler:
        for _ in range(4):
            optimizer.step(closure)
            profiler.step()
    events = profiler.events()
    table = block_table(events, steps=3, images=3 * 64).set_index("block")

    def sum_ms(begin: str) -> float:
        return sum(e.time_range.elapsed_us() for e in events if e.name.startswith(begin)) / 3000

    assert list(table.index) == ["frozen", "tuned", "head", "optimizer", "other"]
    for name in ("frozen", "tuned", "head"):
        assert table.loc[name, "forward_ms"] == pytest.approx(sum_ms(f"block/{name}"))
    assert table.loc["frozen", "backward_ms"] == 0
    assert (table.loc[["tuned", "head"], "backward_ms"] > 0).all()
    backward = table["backward_ms"].sum()
    assert backward == pytest.approx(sum_ms("autograd::engine::evaluate_function"))
    relus = sorted(
        (e.time_range.start, e.time_range.elapsed_us() / 3000)
        for e in events
        if e.name == "autograd::engine::evaluate_function: ReluBackward0"
    )
    assert table.loc["tuned", "backward_ms"] > sum(duration for _, duration in relus)
    assert table["share"].sum() == pytest.approx(1)
    marks = [e.time_range for e in events if e.name.startswith("ProfilerStep")]
    assert table["total_ms"].sum() == pytest.approx((max(m.end for m in marks) - min(m.start for m in marks)) / 3000)


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
