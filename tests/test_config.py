"""Every field says what it is, and every default can be trained with."""

import ast
import inspect
import itertools
from dataclasses import fields, is_dataclass
from typing import get_args, get_type_hints

import pytest

from medxfer import config
from medxfer.config import DataConfig, ModelConfig, TrainConfig
from medxfer.models.inception import BLOCK_NAMES
from medxfer.validation import training_faults

CLASSES = [kind for _, kind in inspect.getmembers(config, inspect.isclass) if is_dataclass(kind)]


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_every_field_has_a_docstring_below_it(kind):
    body = ast.parse(inspect.getsource(kind)).body[0].body
    told = {
        first.target.id
        for first, second in itertools.pairwise(body)
        if isinstance(first, ast.AnnAssign) and isinstance(second, ast.Expr) and isinstance(second.value, ast.Constant)
    }
    sections = {field.name for field in fields(kind) if is_dataclass(get_type_hints(kind)[field.name])}
    assert told >= {field.name for field in fields(kind)} - sections


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_configs_are_frozen_and_have_defaults(kind):
    made = kind()
    with pytest.raises(AttributeError):
        setattr(made, fields(kind)[0].name, None)


def test_defaults_can_be_trained_with():
    assert training_faults(TrainConfig(data=DataConfig(source="labels.csv"))) == []


def test_the_cuts_are_the_blocks():
    assert set(get_args(get_type_hints(ModelConfig)["freeze_until"])) == {"none", "all", *BLOCK_NAMES}


def test_lists_and_tags_are_not_shared_between_configs():
    first, second = TrainConfig(), TrainConfig()
    first.data.label_columns.append("other")
    first.tracking.tags["ward"] = "7"
    assert second.data.label_columns == ["label"]
    assert second.tracking.tags == {}
