import re

import pandas as pd
import pytest

from medxfer.evaluation.plots import draw_history
from medxfer.training.callbacks.history import History, clock
from medxfer.training.callbacks.progress import Progress
from medxfer.training.callbacks.throughput import Throughput
from medxfer.training.stages import StagePlan
from tests.models.test_transfer import make_net
from tests.training.fixtures import fit


def test_one_row_per_epoch_and_one_printed_line(tmp_path, capsys):
    plan = StagePlan(1, 1)
    trainer = fit(
        make_net(outputs=2, freeze_until="Mixed_7c"), tmp_path, History(path=tmp_path / "h.csv", plan=plan), plan=plan
    )
    history = pd.read_csv(tmp_path / "h.csv")
    assert list(history["epoch"]) == [0, 1]
    assert list(history["stage"]) == ["head", "finetune"]
    assert history["val/loss"].iloc[-1] == pytest.approx(float(trainer.callback_metrics["val/loss"]))
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch")]
    assert lines[0].startswith("epoch 1/2 head  train loss ")
    assert lines[1].endswith("0:00 left")


class Known(Throughput):
    """Has measured already."""

    @property
    def figures(self) -> dict[str, float]:
        return {"images_per_second": 1234.56789, "wait_share": 0.25, "val_images_per_second": 1.0}


def test_the_speed_is_in_the_row_and_in_the_line_and_disturbs_no_curve(tmp_path, capsys):
    plan = StagePlan(1, 0)
    history = History(path=tmp_path / "h.csv", plan=plan, throughput=Known(plan=plan))
    fit(make_net(outputs=2, freeze_until="all"), tmp_path, history, plan=plan)
    table = pd.read_csv(tmp_path / "h.csv")
    assert table["images_per_second"].tolist() == [1234.5679]
    assert table["wait_share"].tolist() == [0.25]
    assert "val_images_per_second" not in table
    assert re.search(r"  val auroc \d\.\d{4}  1235 images/s  \d+ s, at most ", capsys.readouterr().out)
    without = table.drop(columns=["images_per_second", "wait_share"])
    curves, curves_without = (
        [list(line.get_ydata()) for axes in draw_history(one).axes for line in axes.lines] for one in (table, without)
    )
    assert curves == curves_without


def test_rows_of_epochs_that_are_done_again_are_replaced(tmp_path):
    plan = StagePlan(2, 0)
    pd.DataFrame({"epoch": [0, 1, 2], "val/loss": [7.0, 8.0, 9.0]}).to_csv(tmp_path / "h.csv", index=False)
    fit(make_net(outputs=2, freeze_until="all"), tmp_path, History(path=tmp_path / "h.csv", plan=plan), plan=plan)
    history = pd.read_csv(tmp_path / "h.csv")
    assert list(history["epoch"]) == [0, 1]
    assert not set(history["val/loss"]) & {7.0, 8.0, 9.0}


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (3599, "59:59"), (3661, "1:01:01")])
def test_clock(seconds, text):
    assert clock(seconds) == text


def test_beside_a_progress_bar_the_line_stays_whole(tmp_path, capsys):
    """Printed into the bar's line, it would be torn apart."""
    plan = StagePlan(1, 1)
    history = History(path=tmp_path / "h.csv", plan=plan)
    fit(make_net(outputs=2, freeze_until="Mixed_7c"), tmp_path, history, plan=plan, progress_bar=Progress(plan=plan))
    shown = capsys.readouterr().out
    for epoch in (1, 2):
        assert re.search(rf"(^|[\n\r])epoch {epoch}/2 \w+  train loss [^\n\r]* left\n", shown)
