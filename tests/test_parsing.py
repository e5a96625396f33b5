"""Command lines and YAML files."""

from dataclasses import asdict
from pathlib import Path

import pytest
import yaml

from medxfer.config import CheckConfig, PredictConfig, TrainConfig
from medxfer.errors import ConfigError
from medxfer.parsing import absolute_paths, check_training, flatten, parse_config, resume_config, to_yaml
from medxfer.validation import training_faults

READ = {"prog": "p", "description": "d"}
CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))


def read(*argv: str) -> TrainConfig:
    return parse_config(TrainConfig, argv, **READ)


def refusal(*argv: str) -> str:
    with pytest.raises(ConfigError) as caught:
        read(*argv)
    return str(caught.value)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_config_is_complete_and_can_be_trained_with(path):
    config = read("--config", str(path), "--data.source", "labels.csv")
    check_training(config)
    of_a_call = {"resume", "debug", "profile"}
    assert set(flatten(yaml.safe_load(path.read_text()))) == set(flatten(asdict(config))) - of_a_call
    header = path.read_text().splitlines()[:4]
    assert all(line.startswith("#") for line in header)
    assert any(f"python -m medxfer.train --config configs/{path.name}" in line for line in header)


def test_there_are_configs():
    assert {path.stem for path in CONFIGS} == {"demo", "demo_source", "dermoscopy", "xray"}


def test_nothing_gives_the_defaults():
    assert read() == TrainConfig()


def test_what_is_written_is_read_again(tmp_path):
    config = read("--data.label_columns", "[a, b]", "--tracking.tags", "{ward: seven}", "--optim.lr", "2e-5")
    (tmp_path / "c.yaml").write_text(to_yaml(config))
    assert read("--config", str(tmp_path / "c.yaml")) == config


def test_later_files_and_the_command_line_win(tmp_path):
    (tmp_path / "a.yaml").write_text("seed: 1\noptim: {lr: 0.1, momentum: 0.5}\n")
    (tmp_path / "b.yaml").write_text("optim:\n  lr: 0.2\n")
    files = ("--config", str(tmp_path / "a.yaml"), f"--config={tmp_path / 'b.yaml'}")
    config = read(*files, "--seed", "7")
    assert (config.seed, config.optim.lr, config.optim.momentum) == (7, 0.2, 0.5)
    assert read("--seed=9", *files).seed == 1


@pytest.mark.parametrize(
    ("argument", "expected"),
    [("a,b", ["a", "b"]), ("[a, b]", ["a", "b"]), ("a", ["a"]), ("['a b']", ["a b"])],
)
def test_lists_need_no_brackets(argument, expected):
    assert read("--data.label_columns", argument).data.label_columns == expected


def test_flags_need_no_value():
    assert read("--debug").debug
    assert read("--debug", "--seed", "3").seed == 3
    assert not read("--debug", "false").debug


def test_null_is_none():
    assert read("--data.class_names", "null").data.class_names is None
    assert read("--trainer.devices", "auto").trainer.devices == "auto"


def test_every_fault_of_every_source_is_told_at_once(tmp_path):
    (tmp_path / "a.yaml").write_text("sede: 1\ndata: {batch_size: many}\noptim: 3\n")
    text = refusal("--config", str(tmp_path / "a.yaml"), "--optim.lr", "fast", "--data.sorce", "x", "loose")
    for part in (
        "sede is not a setting", "did you mean seed?", "data.batch_size has a wrong value", "a.yaml",
        "optim is a section and needs settings below it", "optim.lr has a wrong value (on the command line)",
        "data.sorce is not a setting (on the command line); did you mean data.source?", "'loose' has no name",
    ):  # fmt: skip
        assert part in text


@pytest.mark.parametrize("argument", ["--data.batch", "--see", "--optim"])
def test_abbreviations_and_sections_are_no_settings(argument):
    assert "is not a setting" in refusal(argument, "3")


@pytest.mark.parametrize(
    ("name", "value"),
    [("loss.name", "hinge"), ("seed", "1.5"), ("data.augment", "much"), ("stages.monitor", "val/f1"), ("debug", "2")],
)
def test_wrong_values_are_told_with_their_name(name, value):
    assert f"{name} has a wrong value" in refusal(f"--{name}={value}")


def test_a_setting_without_a_value():
    assert "--optim.lr needs a value" in refusal("--optim.lr")


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("a: [", "is not YAML"), ("- 1", "must hold sections and settings, found list"),
        (b"seed: 1 # \xff", "is not YAML"),
        ("data: !!python/object/apply:os.getcwd []", "is not YAML"), ("", "found NoneType"),
        ("data:", "data is a section and needs settings below it, got None"), (None, "cannot be read: No such file"),
    ],
)  # fmt: skip
def test_files_that_are_no_configs(tmp_path, content, text):
    if content is not None:
        (tmp_path / "a.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
    assert text in refusal("--config", str(tmp_path / "a.yaml"))


def test_positional_arguments_may_stand_anywhere():
    kinds = {"positional": "inputs", "metavar": "IMAGE"}
    config = parse_config(PredictConfig, ["a.png", "--run", "r", "b.png", "--output=o.csv"], **READ, **kinds)
    assert (config.inputs, config.run, config.output) == (["a.png", "b.png"], "r", "o.csv")


def test_help_shows_every_field_and_its_docstring(capsys):
    with pytest.raises(SystemExit) as ended:
        read("--help")
    assert ended.value.code == 0
    out = " ".join(capsys.readouterr().out.split())
    for name in flatten(asdict(TrainConfig())):
        assert f"--{name} " in out
    assert "Largest gradient norm; 0 is off." in out


def test_print_config_can_be_read_again(capsys, tmp_path):
    with pytest.raises(SystemExit):
        read("--seed=5", "--print_config")
    (tmp_path / "c.yaml").write_text(capsys.readouterr().out)
    assert read("--config", str(tmp_path / "c.yaml")) == read("--seed=5")


def resumed(tmp_path: Path, *argv: str) -> TrainConfig:
    stored = tmp_path / "config.yaml"
    stored.write_text(f"seed: 4\ndata: {{source: {Path('labels.csv').absolute()}}}\n")
    return resume_config(["--resume", "r", *argv], stored=stored, **READ)


def test_a_resumed_run_keeps_its_settings(tmp_path):
    config = resumed(tmp_path)
    assert (config.seed, config.resume) == (4, "r")


@pytest.mark.parametrize(
    "argv",
    [
        ("--trainer.accelerator=cpu",), ("--trainer.devices=2",), ("--trainer.num_nodes=2",), ("--data.num_workers=3",),
        ("--tracking.uri=http://x",), ("--debug",), ("--stages.head_epochs=9",), ("--stages.finetune_epochs=99",),
        ("--cache.at=cut",), ("--profile",),
    ],
)  # fmt: skip
def test_what_may_differ_on_resume(tmp_path, argv):
    assert resumed(tmp_path, *argv) != resumed(tmp_path)


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        (("--seed=5",), "seed is 4 in the run and 5 now"),
        (("--data.batch_size=7",), "data.batch_size is 32 in the run and 7 now"),
        (("--data.source=other.csv",), "data.source is"),
        (("--stages.finetune_epochs=1",), "stages.finetune_epochs may only grow"),
        (("--output_dir=elsewhere",), "output_dir is"),
    ],
)
def test_what_may_not_differ_on_resume(tmp_path, argv, text):
    with pytest.raises(ConfigError, match="a resumed run keeps its settings") as caught:
        resumed(tmp_path, *argv)
    assert text in str(caught.value)
    assert "only these may differ: trainer.accelerator" in str(caught.value)


def test_paths_become_absolute_so_that_a_run_can_be_resumed_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = absolute_paths(read("--data.source=a.csv", "--model.weights=w.pth", "--data.image_root=films"))
    assert config.data.source == str(tmp_path / "a.csv")
    assert config.data.image_root == str(tmp_path / "films")
    assert config.model.weights == str(tmp_path / "w.pth")
    assert absolute_paths(read()).model.weights == "imagenet"


def test_a_run_resumes_from_its_complete_config(tmp_path):
    stored = tmp_path / "config.yaml"
    before = absolute_paths(read("--data.source", "labels.csv", "--seed", "4", "--tracking.tags", "{a: b}"))
    stored.write_text(to_yaml(before))
    config = resume_config([f"--resume={tmp_path}", "--data.source=labels.csv"], stored=stored, **READ)
    assert asdict(config) == {**asdict(before), "resume": str(tmp_path)}


def test_every_setting_that_differs_on_resume_is_told_at_once(tmp_path):
    with pytest.raises(ConfigError) as caught:
        resumed(tmp_path, "--seed=5", "--optim.lr=1", "--stages.head_epochs=0", "--trainer.accelerator=cpu")
    text = str(caught.value)
    assert all(name in text for name in ("seed is 4", "optim.lr is 0.001", "stages.head_epochs may only grow: it is 3"))
    assert "trainer.accelerator is" not in text
    assert str(tmp_path / "config.yaml") in text


def test_faults_of_several_files_name_their_file(tmp_path):
    (tmp_path / "a.yaml").write_text("seed: x\n")
    (tmp_path / "b.yaml").write_text("model: {dropuot: 0.1}\n")
    lines = refusal(f"--config={tmp_path / 'a.yaml'}", f"--config={tmp_path / 'b.yaml'}").splitlines()
    assert lines[0] == "the settings cannot be used:"
    assert f"seed has a wrong value (in {tmp_path / 'a.yaml'})" in lines[1]
    assert lines[2] == f"  - model.dropuot is not a setting (in {tmp_path / 'b.yaml'}); did you mean model.dropout?"


def test_a_name_like_no_other_points_to_the_help():
    assert "qqqqqq is not a setting (on the command line); --help lists all settings" in refusal("--qqqqqq=1")


def test_numbers_in_files_may_be_written_as_powers_of_ten(tmp_path):
    (tmp_path / "a.yaml").write_text("optim: {lr: 1e-3, weight_decay: 1.0e-4}\n")
    config = read(f"--config={tmp_path / 'a.yaml'}")
    assert (config.optim.lr, config.optim.weight_decay) == (1e-3, 1e-4)


@pytest.mark.parametrize("name", ["3", "2026-01-01", "true", "0123"])
def test_text_on_the_command_line_stays_text(name):
    assert read("--tracking.run_name", name).tracking.run_name == name


def test_values_may_hold_equal_signs_and_minus_signs():
    config = read("--data.source=a=b.csv", "--head_init.bias", "-0.5")
    assert (config.data.source, config.head_init.bias) == ("a=b.csv", -0.5)


@pytest.mark.parametrize("argv", [("--seed=x", "--help"), ("--seed=x", "--print_config"), ("--print_configs",)])
def test_mistakes_beside_help_are_told_as_mistakes_or_help_is_shown(argv):
    with pytest.raises((ConfigError, SystemExit)):
        read(*argv)


def test_all_faults_of_the_checks_are_told_at_once():
    with pytest.raises(ConfigError) as caught:
        check_training(read("--data.batch_size=0", "--optim.lr=-1"))
    assert all(name in str(caught.value) for name in ("data.source must", "data.batch_size must", "optim.lr must"))


def test_a_section_that_stands_twice_is_told(tmp_path):
    (tmp_path / "a.yaml").write_text("data:\n  modality: dermoscopy\nseed: 1\ndata:\n  source: mine.csv\n")
    assert "data stands twice, in lines 1 and 4" in refusal("--config", str(tmp_path / "a.yaml"))


def test_null_is_for_settings_that_may_be_null(tmp_path):
    (tmp_path / "a.yaml").write_text("model:\n  freeze_until: null\n  input_mean: null\nstages:\n  monitor: null\n")
    told = refusal("--config", str(tmp_path / "a.yaml"))
    assert "model.freeze_until must have a value, got null" in told
    assert "stages.monitor must have a value, got null" in told
    assert "input_mean" not in told


@pytest.mark.parametrize("value", ["0,1", "[0, 1]", "['0', '1']"])
def test_numbers_as_class_names(value, tmp_path):
    assert read("--data.class_names", value).data.class_names == ["0", "1"]
    assert read("--data.class_names", "no,yes").data.class_names == ["no", "yes"]
    (tmp_path / "a.yaml").write_text("data:\n  class_names: [0, 1]\n")
    assert "write each of them in quotes" in refusal("--config", str(tmp_path / "a.yaml"))


@pytest.mark.parametrize(("text", "value"), [("False", False), ("TRUE", True), ("false", False)])
def test_switches_are_set_in_any_case(text, value):
    assert read("--trainer.deterministic", text).trainer.deterministic is value


def test_mistakes_in_print_config_are_told():
    with pytest.raises((ConfigError, SystemExit)):
        read("--print_config=comments")


def test_mistakes_of_every_kind_are_told_in_one_message(tmp_path):
    (tmp_path / "a.yaml").write_text("optim:\n  lr: -1\n  momentun: 0.5\ndata:\n  batch_size: 0\n")
    argv = ["--config", str(tmp_path / "a.yaml"), "--seed=x", "--data.fold=7", "--data.batch_size=-3", "loose"]
    with pytest.raises(ConfigError) as caught:
        parse_config(TrainConfig, argv, prog="p", description="d", check=training_faults)
    told = str(caught.value)
    for part in (
        "optim.momentun is not a setting", "seed has a wrong value", "'loose' has no name",
        "optim.lr must be a positive",
        "data.batch_size must be at least 1, got -3", "data.fold is 7 but data.folds is 0", "data.source must name",
    ):  # fmt: skip
        assert part in told


def test_off_is_a_choice_and_no_truth_value_also_in_a_file(tmp_path):
    (tmp_path / "c.yaml").write_text("data:\n  near_duplicates: off\n  allow_leaks: true\n  class_names: [no, yes]\n")
    config = read("--config", str(tmp_path / "c.yaml"), "--data.source", "labels.csv")
    assert config.data.near_duplicates == "off"
    assert config.data.allow_leaks is True
    assert config.data.class_names == ["no", "yes"]
    assert read("--data.near_duplicates=off").data.near_duplicates == "off"


def test_a_date_and_other_values_of_yaml_s_own_are_refused_in_plain_lines(tmp_path):
    for text, found in (("2024-01-01", "in quotes"), ("!!binary aGVsbG8=", "in quotes"), ("? [a]\n  : b", "not YAML")):
        (tmp_path / "c.yaml").write_text(f"tracking:\n  run_name: {text}\n")
        with pytest.raises(ConfigError, match=found):
            read("--config", str(tmp_path / "c.yaml"))


def test_sections_of_a_larger_config_are_left_aside_in_files_only(tmp_path):
    (tmp_path / "c.yaml").write_text("seed: 3\noptim:\n  lr: 0.1\ndata:\n  modality: dermoscopy\n")
    arguments = {"prog": "p", "description": "d", "files_of": TrainConfig}
    found = parse_config(CheckConfig, ["--config", str(tmp_path / "c.yaml"), "--data.source=x.csv"], **arguments)
    assert (found.seed, found.data.modality, found.data.source) == (3, "dermoscopy", "x.csv")
    with pytest.raises(ConfigError, match=r"optim\.lr is not a setting"):
        parse_config(CheckConfig, ["--optim.lr=1"], **arguments)
