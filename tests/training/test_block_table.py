"""Where the time of recorded steps went, against traces by hand and against torch's own events."""

from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from torch import nn
from torch.autograd.profiler_util import Interval
from torch.profiler import ProfilerActivity, profile, record_function, schedule

from medxfer.training.block_table import block_table


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
