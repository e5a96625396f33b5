"""Every shipped config is complete, can be trained with, and says how to run it."""

import re
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml

from medxfer.config import TrainConfig
from medxfer.parsing import check_training, flatten, parse_config

FOLDER = Path(__file__).parents[1] / "configs"
FILES = sorted(FOLDER.glob("*.yaml"))

# A run's own, never a file's.
OWN = {"resume", "debug", "profile"}


def test_all_are_there():
    assert {file.name for file in FILES} == {"demo.yaml", "demo_source.yaml", "dermoscopy.yaml", "xray.yaml"}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_parses_and_can_be_trained_with(file):
    argv = [f"--config={file}"]
    if not yaml.safe_load(file.read_text())["data"]["source"]:
        argv.append("--data.source=labels.csv")
    check_training(parse_config(TrainConfig, argv, prog="p", description="d"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_holds_every_setting_in_the_order_of_the_code(file):
    names = [name for name in flatten(asdict(TrainConfig())) if name not in OWN]
    assert list(flatten(yaml.safe_load(file.read_text()))) == names


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_its_header_says_the_command_and_what_to_expect(file):
    header = re.match(r"(#.*\n)+", file.read_text()).group()
    assert f"python -m medxfer.train --config configs/{file.name}" in header
    assert re.search(r"Expect|Takes", header)
