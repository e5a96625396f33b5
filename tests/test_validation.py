"""Each rule, and that a good config breaks none."""

from collections.abc import Iterator
from dataclasses import asdict, replace

import pytest

from medxfer.config import TrainConfig
from medxfer.parsing import flatten
from medxfer.validation import training_faults


def changed(**values: object) -> TrainConfig:
    config = TrainConfig()
    config = replace(config, data=replace(config.data, source="labels.csv"))
    for name, value in values.items():
        section, _, field = name.partition("__")
        config = replace(config, **{section: replace(getattr(config, section), **{field: value})})
    return config


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"data__source": None}, "data.source must name a CSV"),
        ({"data__image_size_px": 74}, "data.image_size_px must be at least 75 and at most 2048, got 74"),
        ({"data__folds": 2}, "data.folds must be at least 3, got 2"),
        ({"data__folds": 5, "data__fold": 5}, "data.fold must be from 0 to 4"),
        ({"data__fold": 1}, "data.folds is 0"),
        ({"data__val_fraction": 0.0}, "data.val_fraction must be at least 0.01"),
        ({"data__test_fraction": float("nan")}, "data.test_fraction must be at least 0.01 and at most 0.9, got nan"),
        ({"data__val_fraction": 0.6, "data__test_fraction": 0.4}, "must leave images to train on, got 0.6 + 0.4"),
        ({"data__augment": -0.1}, "data.augment"),
        ({"data__batch_size": 0}, "data.batch_size must be at least 1, got 0"),
        ({"data__num_workers": -1}, "data.num_workers"),
        ({"data__label_columns": []}, "data.label_columns must name at least one column"),
        ({"data__label_columns": ["a", "a"]}, "each column once"),
        ({"data__class_names": ["a"]}, "at least two different names"),
        ({"model__input_mean": [0.1, 0.2]}, "model.input_mean must hold 1 or 3 numbers, got 2"),
        ({"model__input_std": [0.0]}, "model.input_std must be positive"),
        ({"model__hidden_features": 0}, "model.hidden_features"),
        ({"model__dropout": 1.0}, "model.dropout must be at least 0 and below 1, got 1"),
        ({"model__weights": "none"}, "a frozen random backbone is numerically meaningless"),
        ({"head_init__std": 0.0}, "head_init.std"),
        ({"head_init__bias": float("inf")}, "head_init.bias must be a finite number"),
        ({"head_init__method": "small_normal", "head_init__mode": "fan_in"}, "head_init.mode has no meaning"),
        ({"head_init__method": "small_normal", "head_init__distribution": "uniform"}, "use small_uniform"),
        ({"stages__head_epochs": -1}, "stages.head_epochs"),
        ({"stages__head_epochs": 0, "stages__finetune_epochs": 0}, "nothing would be trained"),
        ({"stages__patience": 0}, "stages.patience"),
        ({"optim__lr": 0.0}, "optim.lr must be a positive number"),
        ({"optim__lr": float("nan")}, "optim.lr must be a positive number"),
        ({"optim__backbone_lr_scale": -1.0}, "optim.backbone_lr_scale"),
        ({"optim__layer_decay": 1.1}, "optim.layer_decay"),
        ({"optim__weight_decay": -1.0}, "optim.weight_decay"),
        ({"optim__momentum": 1.0}, "optim.momentum"),
        ({"optim__warmup_epochs": -1.0}, "optim.warmup_epochs"),
        ({"optim__step_epochs": 0}, "optim.step_epochs"),
        ({"optim__step_factor": 2.0}, "optim.step_factor"),
        ({"optim__gradient_clip": -1.0}, "optim.gradient_clip"),
        ({"loss__label_smoothing": 0.95}, "loss.label_smoothing"),
        ({"loss__name": "focal", "loss__label_smoothing": 0.1}, "not defined for loss.name: focal"),
        ({"loss__focal_gamma": -1.0}, "loss.focal_gamma"),
        ({"trainer__devices": 2}, "several devices or machines is not supported yet"),
        ({"trainer__num_nodes": 2}, "got auto and 2"),
        ({"trainer__accumulate": 0}, "trainer.accumulate"),
        ({"checkpoint__every_minutes": -1.0}, "checkpoint.every_minutes"),
        ({"checkpoint__keep": -1}, "checkpoint.keep"),
    ],
)  # fmt: skip
def test_each_rule_is_told_alone(values, text):
    faults = training_faults(changed(**values))
    assert len(faults) == 1
    assert text in faults[0]


def test_all_faults_are_told_at_once():
    assert len(training_faults(changed(data__batch_size=0, optim__lr=-1.0, model__dropout=2.0))) == 3


def test_random_weights_trained_whole_are_fine():
    config = changed(
        model__weights="none", model__freeze_until="none", model__suffix_batch_norm="train", stages__head_epochs=0
    )
    assert training_faults(config) == []


def test_good_configs_break_no_rule():
    assert training_faults(changed(data__folds=5, data__fold=4)) == []
    assert training_faults(changed(head_init__method="small_uniform")) == []
    assert training_faults(changed(trainer__devices=1)) == []


def numbers(kind: type) -> Iterator[str]:
    for name, value in flatten(asdict(TrainConfig())).items():
        if type(value) is kind:
            yield name.replace(".", "__")


@pytest.mark.parametrize("name", list(numbers(float)))
@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_no_number_may_be_nan_or_minus_infinity(name, value):
    assert any(name.replace("__", ".") in fault for fault in training_faults(changed(**{name: value})))


@pytest.mark.parametrize("name", [name for name in numbers(int) if name != "seed"])
def test_no_count_may_be_negative(name):
    assert any(name.replace("__", ".") in fault for fault in training_faults(changed(**{name: -1})))


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_that_numpy_does_not_take_is_told(seed):
    assert any("seed" in fault for fault in training_faults(replace(changed(), seed=seed)))


@pytest.mark.parametrize(
    "values",
    [
        {"model__input_mean": [float("nan")]},
        {"model__input_mean": [float("inf")]},
        {"model__input_std": [float("inf")]},
    ],
)
def test_preprocessing_that_leaves_nothing_of_an_image_is_told(values):
    assert len(training_faults(changed(**values))) == 1


@pytest.mark.parametrize("name", ["../elsewhere", "/elsewhere"])
def test_a_run_stays_in_the_output_folder(name):
    assert any("tracking.run_name" in fault for fault in training_faults(changed(tracking__run_name=name)))


@pytest.mark.parametrize(
    "values",
    [
        {"data__image_size_px": 75}, {"data__image_size_px": 2048}, {"data__folds": 3, "data__fold": 2},
        {"data__val_fraction": 0.01}, {"data__augment": 0.0}, {"data__augment": 3.0}, {"data__batch_size": 1},
        {"data__num_workers": 0}, {"model__dropout": 0.0}, {"model__input_mean": [0.5]},
        {"model__input_std": [1.0] * 3},
        {"stages__head_epochs": 0}, {"stages__finetune_epochs": 0}, {"stages__patience": 1},
        {"optim__layer_decay": 1.0},
        {"optim__gradient_clip": 0.0}, {"loss__label_smoothing": 0.9}, {"loss__name": "focal"},
        {"checkpoint__every_minutes": 0.0}, {"head_init__method": "xavier", "head_init__mode": "average"},
    ],
)  # fmt: skip
def test_the_ends_of_the_ranges_belong_to_them(values):
    assert training_faults(changed(**values)) == []
