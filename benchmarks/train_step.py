"""Images per second of training and evaluation, against the scripts people write: `python benchmarks/train_step.py`.

All contestants get the same files, split, starting weights, batch size and threads, train the same number of parameters
(asserted), and take turns in processes of their own, several rounds; the table holds medians over the rounds. Steps are
whole: the peers open their files, medxfer reads its store of decoded pictures, whose cost is printed once.
(a) plain Lightning and torchvision, (b) fastai, (c) timm with bf16, (d) medxfer, (e) medxfer with activations kept at
the cut, (f) medxfer's network on one resident batch. `--full`: also nothing frozen, and more of everything.
"""

import argparse
import importlib.util
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from machine import describe
from peers.gate import Contestant
from peers.job import Job
from peers.shared import about, hold_to, prepare, write_phantoms

from medxfer.data.datamodule import cores

CUTS = ("none", "Mixed_5d", "Mixed_6e", "all")


class Entry(NamedTuple):
    """How a contestant is started: its title, module and functions, and what these take."""

    title: str
    module: str
    train: str
    evaluate: str | None
    options: dict[str, object]


CONTESTANTS = {
    "plain": Entry("(a) plain Lightning", "plain_lightning", "train_steps", "evaluate_steps", {}),
    "fastai": Entry("(b) fastai", "fastai_learner", "train_steps", "evaluate_steps", {}),
    "timm": Entry("(c) timm", "timm_script", "train_steps", "evaluate_steps", {}),
    "medxfer": Entry("(d) medxfer", "medxfer_steps", "train_steps", "evaluate_steps", {"cache": "none"}),
    "cached": Entry("(e) medxfer, cache at cut", "medxfer_steps", "train_steps", None, {"cache": "cut"}),
    "roofline": Entry("(f) one resident batch", "medxfer_steps", "roofline_steps", None, {}),
}

COLUMNS = (
    f"{'work':<20}{'contestant':<27}{'img/s':>8}{'range':>17}{'to (a)':>9}{'trained':>12}{'peak MB':>9}{'ready s':>9}"
)


@dataclass
class Row:
    """One contestant at one kind of work.

    Attributes:
        work: title of the kind of work.
        name: key of `CONTESTANTS`.
        trained: number of trained parameters.
        ready_s: seconds until it was warm: network, loaders, with a cache the first pass, and the warm-up steps.
        remark: arithmetic.
        rates: images per second of each round.
        peak_mb: peak memory, without loader processes.
    """

    work: str
    name: str
    trained: int
    ready_s: float
    remark: str
    rates: list[float]
    peak_mb: float = float("nan")

    def ratio(self, base: "Row") -> float:
        """Return the median over the rounds of the ratio to another row."""
        return statistics.median(mine / its for mine, its in zip(self.rates, base.rates, strict=True))


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables."""
    asked = read_arguments(arguments)
    hold_to(asked.threads)
    print(describe(), flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = asked.folder or Path(name)
        source = asked.data or write_phantoms(folder / "phantoms", modality=asked.modality, images=asked.images)
        job, data, seconds = prepare(
            folder,
            source=source,
            weights=asked.weights,
            modality=asked.modality,
            image_size_px=asked.image_size_px,
            batch_size=asked.batch_size,
            threads=asked.threads,
            workers=asked.workers,
            near_duplicates="off",
        )
        print(
            f"{about(data)}; {job.image_size_px} px, batch {job.batch_size}, {job.threads} threads, the peers with "
            f"{job.workers} loader processes; {asked.rounds} rounds of at least {asked.steps} steps and "
            f"{asked.seconds:g} s\n(d), (e) and (f) read pictures that were decoded once, in {seconds:.1f} s "
            f"({len(data.splits) / seconds:.0f} img/s)\n\n{COLUMNS}",
            flush=True,
        )
        rows = compare(asked, job)
    print("\n" + "\n".join(summary(rows)))
    if asked.output:
        pd.DataFrame([vars(row) | {"img_s": statistics.median(row.rates)} for row in rows]).to_csv(asked.output)
    return 0


def read_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; what is not given depends on `--full`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="all cuts, more rounds, more images")
    parser.add_argument("--cuts", help=f"of {','.join(CUTS)}")
    parser.add_argument("--contestants", default=",".join(CONTESTANTS), help="(default: %(default)s)")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--steps", type=int, help="least steps of a turn")
    parser.add_argument("--seconds", type=float, help="least seconds of a turn")
    parser.add_argument("--images", type=int, help="number of synthetic images")
    parser.add_argument("--no-evaluation", action="store_true", help="only training")
    parser.add_argument("--batch-size", type=int, default=16, help="(default: %(default)s)")
    parser.add_argument("--image-size-px", type=int, default=299, help="(default: %(default)s)")
    parser.add_argument("--threads", type=int, default=cores(), help="of the arithmetic (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=cores(), help="loader processes of the peers")
    parser.add_argument("--data", type=Path, help="CSV or folder of class folders (default: synthetic X-rays)")
    parser.add_argument("--modality", choices=("xray", "dermoscopy"), default="xray", help="(default: %(default)s)")
    parser.add_argument("--weights", help="file of source weights (default: random, batch norm calibrated)")
    parser.add_argument("--folder", type=Path, help="keep split, weights and decoded pictures here")
    parser.add_argument("--output", type=Path, help="write the rows as a CSV too")
    asked = parser.parse_args(arguments)
    short: dict[str, Any] = {
        "cuts": ",".join(CUTS[1:]),
        "rounds": 3,
        "steps": 1,
        "seconds": 2.5,
        "images": 200,
    }
    full: dict[str, Any] = {"cuts": ",".join(CUTS), "rounds": 7, "steps": 4, "seconds": 4.0, "images": 1000}
    for name, value in (full if asked.full else short).items():
        if getattr(asked, name) is None:
            setattr(asked, name, value)
    asked.cuts, asked.contestants = asked.cuts.split(","), asked.contestants.split(",")
    unknown = [*({*asked.cuts} - {*CUTS}), *({*asked.contestants} - {*CONTESTANTS})]
    missing = [name for name in ("fastai", "timm") if name in asked.contestants and not importlib.util.find_spec(name)]
    if unknown:
        parser.error(f"unknown: {', '.join(unknown)}")
    if missing:
        parser.error(f"{' and '.join(missing)} needed: pip install -e '.[bench]', or leave out of --contestants")
    return asked


def compare(asked: argparse.Namespace, job: Job) -> list[Row]:
    """Run all kinds of work and print each as soon as it is done."""
    running = {
        name: Contestant(CONTESTANTS[name].title, CONTESTANTS[name].module, job, **CONTESTANTS[name].options)
        for name in asked.contestants
    }
    rows = []
    try:
        for cut in asked.cuts:
            work = {"none": "nothing frozen", "all": "all frozen"}.get(cut, f"frozen to {cut}")
            functions = {name: CONTESTANTS[name].train for name in running if (name, cut) != ("cached", "none")}
            rows += block(work, running, functions, job.at(cut), asked)
        if not asked.no_evaluation:
            functions = {name: function for name in running if (function := CONTESTANTS[name].evaluate)}
            rows += block("evaluation", running, functions, job.at("Mixed_6e"), asked)
    finally:
        for contestant in running.values():
            contestant.end()
    return rows


def block(
    work: str, running: dict[str, Contestant], functions: dict[str, str], job: Job, asked: argparse.Namespace
) -> list[Row]:
    """Run one kind of work: open all, let them take turns, close all.

    Args:
        work: its title.
        running: all contestants by name.
        functions: what each of those that take part runs.
        job: with the cut.
        asked: rounds, steps and seconds.
    """
    rows = {}
    for name, function in functions.items():
        opened = running[name].open(function, job)
        rows[name] = Row(work, name, opened.trained, opened.seconds, opened.remark, [])
    counts = {name: row.trained for name, row in rows.items()}
    assert len({*counts.values()}) <= 1, f"the contestants train different numbers of parameters: {counts}"
    for number in range(asked.rounds):
        for name in list(rows) if number % 2 == 0 else reversed(rows):
            rows[name].rates.append(running[name].turn(steps=asked.steps, seconds=asked.seconds))
    for name, row in rows.items():
        row.peak_mb = running[name].close()
        print(line(row, rows.get("plain")), flush=True)
    return list(rows.values())


def line(row: Row, base: Row | None) -> str:
    """Write one row of the table."""
    ratio = f"{row.ratio(base):.2f}x" if base is not None else "-"
    spread = f"{min(row.rates):.1f} to {max(row.rates):.1f}"
    return (
        f"{row.work:<20}{CONTESTANTS[row.name].title:<27}{statistics.median(row.rates):>8.1f}{spread:>17}{ratio:>9}"
        f"{row.trained or '-':>12}{row.peak_mb:>9.0f}{row.ready_s:>9.1f}"
    )


def summary(rows: Sequence[Row]) -> Iterator[str]:
    """Write what the rows are read for: ratios, and the share of the roofline."""
    by_work: dict[str, dict[str, Row]] = {}
    for row in rows:
        by_work.setdefault(row.work, {})[row.name] = row
    columns = [name for name in CONTESTANTS if name != "plain"]
    yield f"{'ratio to (a)':<20}" + "".join(f"{name:>11}" for name in columns) + f"{'(d) of (f)':>13}"
    for work, found in by_work.items():
        cells = [
            f"{found[name].ratio(found['plain']):.2f}x" if name in found and "plain" in found else "-"
            for name in columns
        ]
        share = f"{found['medxfer'].ratio(found['roofline']):.0%}" if {"medxfer", "roofline"} <= {*found} else "-"
        yield f"{work:<20}" + "".join(f"{cell:>11}" for cell in cells) + f"{share:>13}"
    yield "arithmetic: " + "; ".join(
        dict.fromkeys(f"{CONTESTANTS[row.name].title} {row.remark}" for row in rows if row.remark)
    )


if __name__ == "__main__":
    sys.exit(main())
