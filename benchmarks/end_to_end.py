"""Wall time and test AUROC from raw files to metrics, medxfer against scripts: `python benchmarks/end_to_end.py`.

Every row is a program of its own, timed from its start to its end: imports, files, training, the test split. Split,
starting weights, batch size and epochs are the same: the head alone first, then everything above the cut. medxfer runs
as users run it, and decodes, audits, saves checkpoints and writes its evidence within that time. Finished rows in the
output folder are read instead of repeated. The AUROC's interval is of the bootstrap over patients.
"""

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from machine import describe
from peers.job import Job
from peers.shared import about, hold_to, prepare, write_phantoms

from medxfer.data.datamodule import cores
from medxfer.evaluation.intervals import auroc_with_interval

BENCHMARKS = Path(__file__).resolve().parent

TITLES = {
    "plain": "(a) plain Lightning",
    "fastai": "(b) fastai",
    "medxfer": "(d) medxfer, cache none",
    "cached": "(e) medxfer, cache at cut",
}
SCRIPTS = {"plain": "peers.plain_lightning", "fastai": "peers.fastai_learner"}
CACHES = {"medxfer": "none", "cached": "cut"}

COLUMNS = f"{'cut':<12}{'contestant':<28}{'seconds':>9}{'to (a)':>9}  test AUROC (95 % interval)"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is missing, then print one table."""
    asked = read_arguments(arguments)
    hold_to(asked.threads)
    print(describe(), flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = (asked.output or Path(name)).resolve()
        source = asked.data or write_phantoms(folder / "phantoms", modality=asked.modality, images=asked.images)
        job, data, _ = prepare(
            folder,
            source=source,
            weights=asked.weights,
            modality=asked.modality,
            image_size_px=asked.image_size_px,
            batch_size=asked.batch_size,
            threads=asked.threads,
            workers=asked.workers,
            near_duplicates="error",
        )
        keep_one_job(job, asked, folder)
        print(
            f"{about(data)}; {job.image_size_px} px, batch {job.batch_size}, {job.threads} threads, the peers with "
            f"{job.workers} loader processes; {asked.head_epochs} epochs of the head, {asked.finetune_epochs} above "
            f"the cut",
            flush=True,
        )
        rows = []
        for cut in asked.cuts.split(","):
            for contestant in asked.contestants.split(","):
                result = folder / f"{contestant}-{cut}.json"
                if not result.is_file():
                    found = run(contestant, job.at(cut), folder, asked)
                    result.write_text(json.dumps(found, indent=1), encoding="utf-8")
                rows.append({"cut": cut, "contestant": contestant, **json.loads(result.read_text(encoding="utf-8"))})
                print(f"{TITLES[contestant]} at {cut}: {rows[-1]['seconds']:.0f} s", flush=True)
    print("\n" + "\n".join(report(pd.DataFrame(rows))))
    return 0


def read_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="CSV or folder of class folders (default: synthetic X-rays)")
    parser.add_argument("--weights", help="file of source weights (default: random, batch norm calibrated)")
    parser.add_argument("--output", type=Path, help="keep finished rows here, and go on from them")
    parser.add_argument("--contestants", default=",".join(TITLES), help="(default: %(default)s)")
    parser.add_argument("--cuts", default="Mixed_6e,Mixed_5d", help="(default: %(default)s)")
    parser.add_argument("--head-epochs", type=int, default=5, help="(default: %(default)s)")
    parser.add_argument("--finetune-epochs", type=int, default=10, help="(default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=16, help="(default: %(default)s)")
    parser.add_argument("--image-size-px", type=int, default=299, help="(default: %(default)s)")
    parser.add_argument("--threads", type=int, default=cores(), help="of the arithmetic (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=cores(), help="loader processes of the peers")
    parser.add_argument("--images", type=int, default=400, help="number of synthetic images (default: %(default)s)")
    parser.add_argument("--modality", choices=("xray", "dermoscopy"), default="xray", help="(default: %(default)s)")
    asked = parser.parse_args(arguments)
    unknown = {*asked.contestants.split(",")} - {*TITLES}
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    return asked


def keep_one_job(job: Job, asked: argparse.Namespace, folder: Path) -> None:
    """Refuse an output folder whose rows are of other work.

    Raises:
        SystemExit: it is.
    """
    file = job.write(folder / "job.json.new")
    wanted = {**json.loads(file.read_text(encoding="utf-8")), "epochs": [asked.head_epochs, asked.finetune_epochs]}
    digest = hashlib.sha256(Path(job.table).read_bytes()).hexdigest()
    wanted |= {"weights_from": asked.weights, "table_sha256": digest}
    file.unlink()
    kept = folder / "job.json"
    if kept.is_file() and json.loads(kept.read_text(encoding="utf-8")) != wanted:
        raise SystemExit(f"{folder} holds rows of other data or settings ({kept}): choose another --output")
    kept.write_text(json.dumps(wanted, indent=1), encoding="utf-8")


def run(contestant: str, job: Job, folder: Path, asked: argparse.Namespace) -> dict[str, float]:
    """Run one program from nothing, and return its seconds and its test AUROC with the interval's ends."""
    place = folder / f"{contestant}-{job.cut}"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    if contestant in SCRIPTS:
        predictions = place / "predictions.csv"
        command = [
            sys.executable, "-m", SCRIPTS[contestant], str(job.write(place / "job.json")),
            f"--head-epochs={asked.head_epochs}", f"--finetune-epochs={asked.finetune_epochs}",
            f"--predictions={predictions}",
        ]  # fmt: skip
    else:
        predictions = place / "run" / "predictions.csv"
        command = [sys.executable, "-m", "medxfer.train", *settings(job, place, asked, cache=CACHES[contestant])]
    log = folder / f"{contestant}-{job.cut}.log"
    with log.open("w", encoding="utf-8") as output:
        start = time.perf_counter()
        code = subprocess.run(command, cwd=BENCHMARKS, stdout=output, stderr=subprocess.STDOUT, check=False).returncode
        seconds = time.perf_counter() - start
    if code:
        tail = log.read_text(encoding="utf-8", errors="replace")[-3000:]
        raise SystemExit(f"{TITLES[contestant]} at {job.cut} ended with exit code {code}:\n{tail}")
    value, low, high = test_auroc(predictions, job)
    return {"seconds": seconds, "auroc": value, "low": low, "high": high}


def settings(job: Job, place: Path, asked: argparse.Namespace, *, cache: str) -> list[str]:
    """Return the command line of medxfer for a job; all that is not named are its defaults."""
    return [
        f"--data.source={job.table}", "--data.split_column=split", "--data.allow_outside_root=true",
        f"--data.class_names={json.dumps(job.class_names)}", f"--data.modality={job.modality}",
        f"--data.image_size_px={job.image_size_px}", f"--data.batch_size={job.batch_size}",
        f"--model.weights={job.weights}", f"--model.input_mean={json.dumps(job.mean)}",
        f"--model.input_std={json.dumps(job.std)}", f"--model.freeze_until={job.cut}",
        f"--stages.head_epochs={asked.head_epochs}", f"--stages.finetune_epochs={asked.finetune_epochs}",
        "--stages.patience=999", f"--cache.at={cache}", f"--seed={job.seed}",
        f"--output_dir={place}", "--tracking.run_name=run",
    ]  # fmt: skip


def test_auroc(predictions: Path, job: Job) -> tuple[float, float, float]:
    """Return the test AUROC and the ends of its interval over patients, the same way for all programs."""
    found = pd.read_csv(predictions, dtype={"path": str, "target": str})
    if "split" in found:
        found = found[found["split"] == "test"]
    table = pd.read_csv(job.table, dtype=str).set_index("path").loc[found["path"]]
    targets = np.array([job.class_names.index(label) for label in table["label"]])
    probs = np.stack([found[f"prob_{name}"] for name in job.class_names], axis=1)
    groups = np.asarray(table["patient_id"]) if "patient_id" in table else None
    task = "binary" if len(job.class_names) == 2 else "multiclass"
    return auroc_with_interval(probs, targets, groups, task=task, seed=0, resamples=2000)


def report(rows: pd.DataFrame) -> Iterator[str]:
    """Write a line per cut and contestant."""
    yield COLUMNS
    for cut, group in rows.groupby("cut", sort=False):
        base = group.loc[group["contestant"] == "plain", "seconds"]
        for row in group.to_dict("records"):
            ratio = f"{base.iloc[0] / row['seconds']:.2f}x" if len(base) else "-"
            yield (
                f"{cut:<12}{TITLES[row['contestant']]:<28}{row['seconds']:>9.0f}{ratio:>9}  "
                f"{row['auroc']:.3f} ({row['low']:.3f} to {row['high']:.3f})"
            )


if __name__ == "__main__":
    sys.exit(main())
