import re
import sys

from lightning.pytorch import Callback, LightningModule, Trainer

from medxfer.training.callbacks.progress import Progress, progress_bar
from medxfer.training.stages import StagePlan
from tests.models.test_transfer import make_net
from tests.training.fixtures import fit


def test_a_bar_is_for_terminals(monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: False)
    assert progress_bar(StagePlan(1, 1)) is None
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert isinstance(progress_bar(StagePlan(1, 1)), Progress)


def test_shows_stage_loss_auroc_and_time_left(tmp_path):
    plan = StagePlan(1, 1)
    bar = Progress(plan=plan)
    shown = []

    class Read(Callback):
        def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_) -> None:
            shown.append(bar.get_metrics(trainer, pl_module))

    fit(make_net(outputs=2, freeze_until="Mixed_7c"), tmp_path, Read(), plan=plan, progress_bar=bar)
    assert [metrics["stage"] for metrics in shown] == ["head"] * 3 + ["finetune"] * 3
    assert "auroc" not in shown[0]
    assert 0 <= float(shown[-1]["auroc"]) <= 1
    assert float(shown[-1]["loss"]) > 0
    assert re.fullmatch(r"0:0\d", shown[-1]["left"])
