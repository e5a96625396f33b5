"""The last step of a script that is run from raw files to metrics: test AUROC by scikit-learn, and its predictions."""

from pathlib import Path

import pandas as pd
from sklearn.metrics import roc_auc_score
from torch import Tensor

from peers.job import Job


def write_test(job: Job, probs: Tensor, path: Path) -> None:
    """Print the test AUROC and write one row per image, named as in medxfer's predictions.

    Args:
        job: whose test split it is, in the order of its rows.
        probs: (N, K).
        path: the CSV: path, target (the class), and prob_ and the name of each class.
    """
    paths, targets = job.rows("test")
    values = probs.double().cpu().numpy()
    binary = len(job.class_names) == 2
    auroc = roc_auc_score(targets, values[:, 1]) if binary else roc_auc_score(targets, values, multi_class="ovr")
    columns = {f"prob_{name}": values[:, k] for k, name in enumerate(job.class_names)}
    pd.DataFrame({"path": paths, "target": [job.class_names[k] for k in targets], **columns}).to_csv(path, index=False)
    print(f"test AUROC {auroc:.4f}")
