from dataclasses import replace

import numpy as np
import pandas as pd

from medxfer.evaluation.predictions import write_predictions
from tests.evaluation.fixtures import make_predictions


def test_one_row_per_image_with_its_class_and_probabilities(tmp_path):
    one = make_predictions("multiclass", size=12)
    write_predictions(tmp_path / "p.csv", [one, make_predictions("multiclass", size=5, seed=1)])
    table = pd.read_csv(tmp_path / "p.csv")
    assert list(table.columns) == ["path", "split", "target", "prob_a", "prob_b", "prob_c", "prob_d"]
    assert len(table) == 17
    assert list(table["target"][:12]) == [one.class_names[t] for t in one.targets]
    np.testing.assert_allclose(table.iloc[:12, 3:].to_numpy(float), one.probs, atol=5e-7)
    assert [p.name for p in tmp_path.iterdir()] == ["p.csv"]


def test_unknown_labels_are_blank(tmp_path):
    one = make_predictions("multilabel", size=30)
    write_predictions(tmp_path / "p.csv", [one])
    table = pd.read_csv(tmp_path / "p.csv")
    np.testing.assert_array_equal(table[["target_x", "target_y", "target_z"]].to_numpy(float), one.targets)


def test_there_are_as_many_as_images():
    assert len(make_predictions("binary", size=7)) == 7


def test_a_table_holds_no_patients():
    one = make_predictions("binary", size=5)
    assert one.groups is not None
    assert list(one.to_table().columns) == ["path", "split", "target", "prob_benign", "prob_malignant"]


def test_odd_names_are_read_again_and_an_older_file_is_replaced(tmp_path):
    (tmp_path / "p.csv").write_text("older")
    paths, names = ['a,"b".png', "é/ü.png"], ('no "x", no y', "mélanome")
    one = replace(make_predictions("binary", size=2), paths=paths, class_names=names)
    write_predictions(tmp_path / "p.csv", [one])
    table = pd.read_csv(tmp_path / "p.csv")
    assert list(table["path"]) == paths
    assert list(table["target"]) == [names[t] for t in one.targets]
    assert list(table.columns[3:]) == [f"prob_{name}" for name in names]
