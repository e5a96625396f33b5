"""The demo behind `make demo`: synthetic images, a small source task, and its transfer, as a user would do it."""

import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from medxfer import predict, train
from medxfer.config import DemoConfig
from medxfer.data.phantoms import write_source_phantoms, write_xray_phantoms
from medxfer.errors import ConfigError
from medxfer.parsing import parse_config
from medxfer.verbs import run_verb

READ: dict[str, Any] = {
    "prog": "python -m medxfer.demo",
    "description": "The whole way on synthetic images; see `make demo`.",
}
CONFIGS = (Path("configs/demo_source.yaml"), Path("configs/demo.yaml"))
DATA = Path("data/demo")
RUNS = (Path("runs/demo-source"), Path("runs/demo"))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo and return its exit code."""
    return run_verb(lambda arguments: parse_config(DemoConfig, arguments, **READ), demo, argv)


def demo(config: DemoConfig) -> int:
    """Write phantoms, train the source task, transfer it, and predict a few images.

    Raises:
        ConfigError: it was not started in the project's folder.
    """
    missing = [str(path) for path in CONFIGS if not path.is_file()]
    if missing:
        raise ConfigError(f"the demo runs in the project's folder, which holds {' and '.join(missing)}")
    started = time.monotonic()
    for folder in (DATA, *RUNS):
        if folder.exists():
            print(f"removing what an earlier demo left: {folder}")
            shutil.rmtree(folder)
    _say("1 of 4", f"writing synthetic images to {DATA}: coloured textures, and chest X-rays as PNG and DICOM")
    write_source_phantoms(DATA / "source", images_per_class=80)
    write_xray_phantoms(DATA / "xrays", patients=150)
    code = 0
    debug = ["--debug"] if config.debug else []
    for step, settings, text in (
        ("2 of 4", CONFIGS[0], "learning the source task from scratch, on colour"),
        ("3 of 4", CONFIGS[1], "transferring it to grey X-rays, early blocks frozen"),
    ):
        _say(step, f"{text}: python -m medxfer.train --config {settings}")
        code = train.main(["--config", str(settings), *debug])
        if code:
            return code
    output = DATA / "predictions.csv"
    command = ["--run", str(RUNS[1]), str(DATA / "xrays" / "images"), "--output", str(output)]
    _say("4 of 4", f"predicting: python -m medxfer.predict {' '.join(command)}")
    code = predict.main([*command, *debug])
    print(f"\nThe demo took {time.monotonic() - started:.0f} s.")
    print(
        "These were phantoms, made to be easy: the numbers say that the program works, nothing about medicine.\n"
        "Real work starts from ImageNet weights and your own table of labels:\n"
        "  python -m medxfer.weights fetch\n"
        "  python -m medxfer.train --config configs/xray.yaml --data.source labels.csv"
    )
    return code


def _say(step: str, text: str) -> None:
    print(f"\n=== {step}: {text}\n", flush=True)


if __name__ == "__main__":
    sys.exit(main())
