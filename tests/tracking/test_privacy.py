from dataclasses import asdict

import pytest

from medxfer.config import DataConfig, ModelConfig, TrackingConfig, TrainConfig
from medxfer.tracking.privacy import shareable, shareable_uri


def test_paths_become_base_names_and_nothing_else_changes():
    config = TrainConfig(
        output_dir="/home/ann/runs",
        resume="/home/ann/runs/r",
        data=DataConfig(source="/ward7/labels.csv", image_root="/ward7/films"),
        model=ModelConfig(weights="/home/ann/w.pth"),
        tracking=TrackingConfig(uri="https://ann:secret@host/x?token=1"),
    )
    before = asdict(config)
    found = shareable(before)
    assert not any(word in str(found) for word in ("ann", "ward7", "secret", "token"))
    assert found["data"]["source"] == "labels.csv"
    assert found["model"]["weights"] == "w.pth"
    assert found["optim"] == before["optim"]
    assert before == asdict(config)


@pytest.mark.parametrize("weights", ["imagenet", "none"])
def test_names_of_weights_stay(weights):
    assert shareable({"model": {"weights": weights}})["model"]["weights"] == weights


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("https://ann:secret@host:5000/path?token=1#x", "https://host:5000/path"),
        ("http://host", "http://host"),
        ("sqlite:////home/ann/mlflow.db", "sqlite:///mlflow.db"),
        ("/home/ann/mlruns", "mlruns"),
        ("file:///home/ann/mlruns", "file:///mlruns"),
        ("postgresql://ann:secret@host/db", "postgresql://host"),
    ],
)
def test_addresses_keep_the_host_only(uri, shown):
    assert shareable_uri(uri) == shown


@pytest.mark.parametrize(
    "uri",
    ["mysql+pymysql://ann:secret@host:3306/db", "postgresql://ann:se@cret@host/db?password=secret", "http://a:b@host"],
)
def test_no_user_and_no_password_is_left(uri):
    assert "@" not in shareable_uri(uri)
    assert "secret" not in shareable_uri(uri)
    assert "host" in shareable_uri(uri)


def test_a_path_is_cut_wherever_it_stands():
    found = shareable({"output_dir": "runs/ann/x/", "resume": None, "data": {"source": "../ward7/y"}, "seed": 1})
    assert found == {"output_dir": "x", "resume": None, "data": {"source": "y"}, "seed": 1}


def test_a_config_without_those_sections_is_fine():
    assert shareable({}) == {}
