"""Test AUROC by depth of the cut, against random weights trained whole: `python benchmarks/transfer.py --help`.

Every row is a real training through `python -m medxfer.train` with two epochs of the head and five of fine-tuning (the
random network: seven epochs of everything). Finished runs in the output folder are read instead of repeated.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

STARTS = {
    "all frozen": ["--model.freeze_until=all"],
    "to Mixed_6e": ["--model.freeze_until=Mixed_6e"],
    "to Mixed_5d": ["--model.freeze_until=Mixed_5d"],
    "random, whole": [
        "--model.weights=none", "--model.freeze_until=none", "--model.suffix_batch_norm=train",
        "--optim.backbone_lr_scale=1", "--optim.layer_decay=1", "--stages.head_epochs=0", "--stages.finetune_epochs=7",
    ],
}  # fmt: skip


def main() -> int:
    """Train what is missing, then print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True, help="a file of source weights")
    parser.add_argument("--output", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--seeds", default="0,1,2", help="of splits and initialisations (default: %(default)s)")
    parser.add_argument("--image-size-px", type=int, default=299, help="side of the pictures (default: %(default)s)")
    parser.add_argument(
        "collections", nargs="+", metavar="CONFIG=TABLE", help="for example configs/xray.yaml=labels.csv"
    )
    arguments = parser.parse_args()
    rows = []
    for seed in map(int, arguments.seeds.split(",")):  # one seed of everything first: an early stop leaves whole rows
        for collection in arguments.collections:
            config, _, table = collection.partition("=")
            for start, settings in STARTS.items():
                run = arguments.output / f"{Path(config).stem}-{start.replace(', ', '-').replace(' ', '-')}-{seed}"
                if not (run / "metrics.json").is_file():
                    shared = [f"--model.weights={arguments.weights}", f"--data.image_size_px={arguments.image_size_px}"]
                    train(run, config, table, seed, [*shared, *settings])
                rows.append({"collection": Path(config).stem, "start": start, **read(run)})
                print(rows[-1], flush=True)
    print("\n" + "\n".join(report(pd.DataFrame(rows))))
    return 0


def train(run: Path, config: str, table: str, seed: int, settings: list[str]) -> None:
    """Train one run in a process of its own, or go on with it."""
    begin = [f"--resume={run}"]
    if not run.exists():
        begin = [
            f"--config={config}", f"--data.source={table}", f"--output_dir={run.parent}",
            f"--tracking.run_name={run.name}", f"--seed={seed}", "--stages.head_epochs=2", "--stages.finetune_epochs=5",
            "--stages.patience=99", *settings,
        ]  # fmt: skip
    subprocess.run([sys.executable, "-m", "medxfer.train", *begin], check=True, stdout=subprocess.DEVNULL)


def read(run: Path) -> dict[str, float]:
    """Return what a finished run says of itself."""
    auroc = json.loads((run / "metrics.json").read_text())["test"]["auroc"]
    history = pd.read_csv(run / "history.csv")
    last = history[history["stage"] == "finetune"]
    memory = json.loads((run / "run.json").read_text())["peak_memory_mb"]
    return {"auroc": auroc["value"], "low": auroc["low"], "high": auroc["high"],
            "epoch_s": float(last["seconds"].median()), "memory_mb": memory}  # fmt: skip


def report(rows: pd.DataFrame) -> Iterator[str]:
    """Write a line per collection and start: test AUROC of each seed, mean, time per epoch and peak memory."""
    title = "test AUROC of each seed (95 % interval)"
    yield f"{'collection':<14}{'start':<16}{title:<66}{'mean':>7}{'s/epoch':>9}{'MB':>7}"
    for (collection, start), group in rows.groupby(["collection", "start"], sort=False):
        cells = "  ".join(f"{r.auroc:.3f} ({r.low:.3f} to {r.high:.3f})" for r in group.itertuples())
        seconds, memory = np.median(group["epoch_s"]), group["memory_mb"].max()
        yield f"{collection:<14}{start:<16}{cells:<66}{group['auroc'].mean():>7.3f}{seconds:>9.1f}{memory:>7.0f}"


if __name__ == "__main__":
    sys.exit(main())
