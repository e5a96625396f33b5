"""Where the time of recorded steps went, block by block, from the events of torch's profiler.

A block of the network is what runs inside `record_function("block/<name>")`.
"""

import math
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import pandas as pd
from torch.autograd.profiler_util import FunctionEvent

BLOCK = "block/"
BACKWARD = "autograd::engine::evaluate_function"
COMPILED = "Torch-Compiled Region"
LOADER = "enumerate(DataLoader)"
STEP, ZERO_GRAD = "Optimizer.step#", "Optimizer.zero_grad#"
"""How torch's own events begin."""

LAST_ROWS = ("optimizer", "data", "other", "idle")
Label = tuple[str, str]
"""Row of the table, and forward, backward or neither."""

HEADINGS = {
    "block": "block",
    "forward_ms": "forward ms",
    "backward_ms": "backward ms",
    "total_ms": "total ms",
    "share": "share",
    "images_per_second": "images/s",
}


def block_table(events: Iterable[FunctionEvent], *, steps: int, images: int) -> pd.DataFrame:
    """Sum a trace up by block.

    Times are those of the device: the kernels' on a GPU, else the thread's. Backward time belongs to the block whose
    forward operation made the autograd node; both carry the same sequence number. What a node accumulates in `.grad`
    belongs to it. The rows add up to the time of a step:

    - each block, in the order in which they run; `compiled`: what `torch.compile` made of blocks;
    - `optimizer`: what `Optimizer.step` does behind the backward pass, with the clipping of gradients;
    - `data`: waiting for torch's `DataLoader`, or what runs inside `block/data`; on a GPU what that launches, and the
      part of it in which the GPU has nothing to do;
    - `other`: loss, metrics, Lightning; on a GPU the kernels and copies outside the blocks;
    - `idle`: on a GPU, the rest of the time in which it has nothing to do.

    Args:
        events: of one `torch.profiler.profile` with a schedule.
        steps: complete steps among them.
        images: in those steps.

    Returns:
        Columns device, steps, images_per_step, block, forward_ms, backward_ms, total_ms (all per step), share (0..1)
        and images_per_second, as if there were nothing else; NaN where a figure makes no sense.
    """
    events = sorted(events, key=lambda event: (event.time_range.start, -event.time_range.end))
    device = [event for event in events if event.device_type.name != "CPU" and not _is_range(event)]
    trace = Trace([e for e in events if e.device_type.name == "CPU" and not e.is_async], steps=steps)
    spent = trace.device_times(device) if device else trace.thread_times()
    names = sorted({name for name, _ in spent}, key=lambda name: trace.order.index(name))
    rows = []
    for name in names:
        forward, backward, neither = (spent.get((name, kind), 0.0) for kind in ("forward", "backward", ""))
        if name in LAST_ROWS:
            forward, backward, neither = math.nan, math.nan, neither + forward + backward
        rows.append((name, forward, backward, neither if name in LAST_ROWS else forward + backward))
    table = pd.DataFrame(rows, columns=["block", "forward_ms", "backward_ms", "total_ms"])
    times = ["forward_ms", "backward_ms", "total_ms"]
    table[times] = table[times] / 1000 / steps
    table["share"] = table["total_ms"] / table["total_ms"].sum()
    table["images_per_second"] = images / steps * 1000 / table["total_ms"].where(table["total_ms"] > 0)
    table.insert(0, "device", "gpu" if device else "cpu")
    table.insert(1, "steps", steps)
    table.insert(2, "images_per_step", images / steps)
    return table


class Trace:
    """The CPU's events of the complete steps, each with the row of the table that it belongs to.

    Args:
        events: sorted by time, outer before inner.
        steps: complete steps.
    """

    def __init__(self, events: list[FunctionEvent], *, steps: int) -> None:
        marks = [event for event in events if event.name.startswith("ProfilerStep")][:steps]
        self.thread = marks[0].thread
        self.begin, self.end = marks[0].time_range.start, marks[-1].time_range.end
        self.events = [event for event in events if self.begin <= event.time_range.start < self.end]
        self.label: dict[int, Label | None] = {}
        self.roots: list[tuple[FunctionEvent, Label, Label | None]] = []
        self.order = [*self._find_labels(), *LAST_ROWS]
        self.updates = [self._update(event) for event in self.events if event.name.startswith(STEP)]

    def _find_labels(self) -> list[str]:
        made_by: dict[tuple[int | None, int], str] = {}  # thread and sequence number → block of the forward operation
        last: dict[int, str] = {}  # thread → block of the last backward node
        for event in self.events:
            outer = self.label.get(id(event.cpu_parent))
            own: Label | None = None
            if event.name.startswith(BLOCK):
                own = (event.name.removeprefix(BLOCK), "forward")
            elif event.name.startswith(COMPILED) and outer is None:
                own = ("compiled", "forward")
            elif event.name.startswith(BACKWARD):
                if not event.name.endswith("AccumulateGrad"):  # it has no number, and runs behind the node it is for
                    last[event.thread] = made_by.get((event.fwd_thread, event.sequence_nr), "other")
                own = (last.get(event.thread, "other"), "backward")
            elif event.name.startswith(LOADER) and event.thread == self.thread:
                own = ("data", "")
            elif event.name.startswith(ZERO_GRAD):
                own = ("optimizer", "")
            label = self.label[id(event)] = own or outer
            if own is not None:
                self.roots.append((event, own, outer))
            if event.sequence_nr >= 0 and (label is None or label[1] != "backward"):
                # Operations without a node show the number of the next one: the last to show it has made the node.
                made_by[event.thread, event.sequence_nr] = label[0] if label is not None else "other"
        return list(dict.fromkeys(name for _, (name, _), _ in self.roots if name not in LAST_ROWS))

    def _update(self, step: FunctionEvent) -> tuple[float, float]:
        """Begin and end of the update itself: Lightning runs forward and backward pass inside the optimizer's step."""
        span = step.time_range
        ends = [
            event.time_range.end
            for event, (_, kind), _ in self.roots
            if kind and span.start <= event.time_range.start and event.time_range.end <= span.end
        ]
        return max(ends, default=span.start), span.end

    def thread_times(self) -> dict[Label, float]:
        """Return microseconds of the main thread by row, each in the innermost block that it was spent in."""
        spent: dict[Label, float] = defaultdict(float)
        for event, own, outer in self.roots:
            if event.thread == self.thread:
                spent[own] += event.time_range.elapsed_us()
                if outer is not None:
                    spent[outer] -= event.time_range.elapsed_us()
        for start, end in self.updates:
            spent["optimizer", ""] += end - start
        spent["other", ""] += max(0.0, self.end - self.begin - sum(spent.values()))
        return dict(spent)

    def device_times(self, device: list[FunctionEvent]) -> dict[Label, float]:
        """Return microseconds of a GPU by row: its kernels and copies belong where they were launched."""
        spent: dict[Label, float] = defaultdict(float)
        for event in self.events:
            if event.kernels and not event.is_user_annotation:
                label = self.label[id(event)]
                if label is None and any(start <= event.time_range.start < end for start, end in self.updates):
                    label = ("optimizer", "")
                spent[label or ("other", "")] += sum(kernel.duration for kernel in event.kernels)
        # The kernels of a CUDA graph have no operation that launched them.
        unclaimed = sum(event.time_range.elapsed_us() for event in device) - sum(spent.values())
        spent["other", ""] += max(0.0, unclaimed)
        busy = _merged((event.time_range.start, event.time_range.end) for event in device)
        idle = max(self.end, busy[-1][1]) - self.begin - sum(end - start for start, end in busy)
        for event, (name, _), outer in self.roots:
            if name == "data" and (outer is None or outer[0] != "data"):
                start, end = event.time_range.start, event.time_range.end
                overlap = sum(max(0.0, min(end, stop) - max(start, begin)) for begin, stop in busy)
                spent["data", ""] += end - start - overlap
        spent["idle", ""] += max(0.0, idle - spent["data", ""])
        return dict(spent)


def describe(rows: pd.DataFrame) -> str:
    """Write one stage's rows of `blocks.csv` as text, under a line with the step's time."""
    first, total = rows.iloc[0], rows["total_ms"].sum()
    title = (
        f"{first['stage']}: {first['images_per_step']:g} images in {total:.1f} ms per step, "
        f"{first['images_per_step'] * 1000 / total:.1f} images/s under the profiler; "
        f"{first['device'].upper()} time, mean of steps: {first['steps']}"
    )
    formats: dict[Any, Any] = dict.fromkeys(HEADINGS, "{:.1f}".format)
    formats |= {"block": str, "share": "{:.1%}".format}
    text = rows.to_string(
        columns=list(HEADINGS), header=list(HEADINGS.values()), index=False, na_rep="", formatters=formats
    )
    return f"{title}\n{text}"


def _is_range(event: FunctionEvent) -> bool:
    """Return whether an event of a GPU is no work but a range of the CPU's that torch shows on its timeline too."""
    return bool(event.is_user_annotation) or event.name.startswith((BLOCK, COMPILED))


def _merged(spans: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """Join spans that overlap."""
    merged: list[tuple[float, float]] = []
    for start, end in sorted(spans):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged
