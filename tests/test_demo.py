"""The demo's steps, with the training and prediction replaced; `.ci/run` runs the whole."""

from pathlib import Path

import pytest

from medxfer import demo

PROJECT = Path(__file__).parents[1]


@pytest.fixture
def steps(tmp_path, monkeypatch) -> list[list[str]]:
    """What the demo asks the other verbs to do, in a folder that looks like the project's."""
    (tmp_path / "configs").symlink_to(PROJECT / "configs")
    monkeypatch.chdir(tmp_path)
    asked: list[list[str]] = []
    monkeypatch.setattr(demo.train, "main", lambda argv: asked.append(["train", *argv]) or 0)
    monkeypatch.setattr(demo.predict, "main", lambda argv: asked.append(["predict", *argv]) or 0)
    return asked


def test_goes_the_way_of_a_user(steps, capsys):
    assert demo.main([]) == 0
    out = capsys.readouterr().out
    assert [step[:3] for step in steps] == [
        ["train", "--config", "configs/demo_source.yaml"],
        ["train", "--config", "configs/demo.yaml"],
        ["predict", "--run", "runs/demo"],
    ]
    for step in steps:
        assert f"python -m medxfer.{step[0]} {' '.join(step[1:])}" in out
    assert "phantoms" in out
    assert "medxfer.weights fetch" in out
    suffixes = {path.suffix for path in Path("data/demo/xrays/images").iterdir()}
    assert suffixes == {".png", ".dcm"}
    assert Path("data/demo/xrays/labels.csv").read_text().startswith("path,label,patient_id")


def test_what_an_earlier_demo_left_is_removed_and_nothing_else(steps, capsys):
    for name in ("runs/demo/old", "runs/mine/old", "data/demo/old", "data/mine/old"):
        Path(name).mkdir(parents=True)
    assert demo.main([]) == 0
    assert "removing what an earlier demo left: runs/demo" in capsys.readouterr().out
    assert not Path("runs/demo/old").exists()
    assert not Path("data/demo/old").exists()
    assert Path("runs/mine/old").exists()
    assert Path("data/mine/old").exists()


def test_a_step_that_fails_ends_the_demo_with_its_code(steps, monkeypatch):
    monkeypatch.setattr(demo.train, "main", lambda argv: steps.append(argv) or 130)
    assert demo.main(["--debug"]) == 130
    assert steps == [["--config", "configs/demo_source.yaml", "--debug"]]


def test_elsewhere_than_in_the_project_it_says_where_it_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert demo.main([]) == 2
    assert "the demo runs in the project's folder" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_it_takes_no_other_settings(steps, capsys):
    assert demo.main(["--seed", "3"]) == 2
    assert "seed is not a setting" in capsys.readouterr().err
    assert steps == []
