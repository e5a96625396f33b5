"""What many tests need: synthetic collections, a source of weights with sane statistics, and one finished run."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch

from medxfer import train
from medxfer.data.phantoms import write_lesion_phantoms, write_xray_phantoms
from medxfer.models.inception import InceptionBackbone, initialize_from_scratch

SIZE_PX = 75  # the smallest that Inception V3 takes


@pytest.fixture(autouse=True)
def _isolated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep every test away from the user's weights and tracking server, and from the working directory."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "1")


@pytest.fixture(scope="session")
def xrays(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of about 80 chest phantoms of 40 patients."""
    return write_xray_phantoms(tmp_path_factory.mktemp("xrays"), patients=40, size_px=96)


@pytest.fixture(scope="session")
def lesions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of 36 lesion phantoms."""
    return write_lesion_phantoms(tmp_path_factory.mktemp("lesions"), images=36, size_px=96)


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of random weights whose batch norm fits pictures, with the preprocessing beside it."""
    backbone = InceptionBackbone()
    generator = torch.Generator().manual_seed(0)
    initialize_from_scratch(backbone, generator=generator)
    backbone.train()
    with torch.no_grad():
        for _ in range(25):
            blurred = torch.nn.functional.interpolate(torch.randn(8, 3, 12, 12, generator=generator), SIZE_PX)
            backbone(blurred + 0.2 * torch.randn(8, 3, SIZE_PX, SIZE_PX, generator=generator))
    path = tmp_path_factory.mktemp("weights") / "source.safetensors"
    safetensors.torch.save_file(backbone.state_dict(), path)
    path.with_suffix(".json").write_text(json.dumps({"input_mean": [0.5], "input_std": [0.5]}))
    return path


Command = Callable[..., list[str]]


def training_command(output: Path, table: Path, source: Path, **changes: object) -> list[str]:
    """Return the arguments of a quick training; `a__b=c` changes the setting a.b."""
    settings = {
        "output_dir": output, "data.source": table, "model.weights": source, "data.image_size_px": SIZE_PX,
        "data.batch_size": 16, "data.num_workers": 0, "stages.head_epochs": 1, "stages.finetune_epochs": 1,
        "model.freeze_until": "Mixed_7a", "model.hidden_features": 32, "trainer.precision": "32",
        "trainer.accelerator": "cpu", "tracking.run_name": "run", "debug": "true",
        **{name.replace("__", "."): value for name, value in changes.items()},
    }  # fmt: skip
    return [f"--{name}={value}" for name, value in settings.items()]


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, xrays: Path, source: Path) -> Path:
    """The folder of a finished run on the chest phantoms."""
    output = tmp_path_factory.mktemp("finished")
    os.environ["MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL"] = "1"
    assert train.main(training_command(output, xrays, source, stages__finetune_epochs=2)) == 0
    return output / "run"
