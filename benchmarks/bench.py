"""All benchmarks, one after another: `python benchmarks/bench.py`, about ten minutes on two cores; `--full` for all."""

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

BENCHMARKS = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Benchmark:
    """A script and what it can be told.

    Attributes:
        script: file name.
        passed: options of this command that it takes too.
        full_only: takes too long for the short form.
    """

    script: str
    passed: tuple[str, ...]
    full_only: bool = False


ALL = (
    Benchmark("train_step.py", ("full", "data", "weights", "modality")),
    Benchmark("input.py", ("full",)),
    Benchmark("predict.py", ("full", "weights")),
    Benchmark("augment.py", ("full",)),
    Benchmark("scale.py", ("full", "data", "modality"), full_only=True),
    Benchmark("end_to_end.py", ("data", "weights", "modality", "output"), full_only=True),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run them, and return 1 when one of them failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true", help="the long forms, and end_to_end and scale")
    parser.add_argument("--only", help="names, separated by commas: train_step,input,...")
    parser.add_argument("--data", help="CSV or folder of class folders (default: synthetic X-rays)")
    parser.add_argument("--modality", help="of --data: xray (default) or dermoscopy")
    parser.add_argument("--weights", help="file of source weights (default: random, batch norm calibrated)")
    parser.add_argument("--output", help="folder where end_to_end keeps finished rows")
    asked = parser.parse_args(arguments)
    only = asked.only.split(",") if asked.only else None
    failed = []
    for benchmark in ALL:
        name = benchmark.script.removesuffix(".py")
        if name not in only if only else benchmark.full_only and not asked.full:
            continue
        command = [sys.executable, str(BENCHMARKS / benchmark.script)]
        for option in benchmark.passed:
            value = getattr(asked, option)
            command += [f"--{option}"] if value is True else [f"--{option}={value}"] if value else []
        print(f"\n=== {name}\n", flush=True)
        start = time.monotonic()
        if subprocess.run(command, check=False).returncode:
            failed.append(name)
        print(f"\n{name} took {time.monotonic() - start:.0f} s", flush=True)
    if failed:
        print(f"\nfailed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
