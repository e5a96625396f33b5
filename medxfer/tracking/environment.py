"""What a run ran on: versions, hardware, and the commit. No names of users, machines or folders."""

import importlib.metadata
import platform
import subprocess
from pathlib import Path

import psutil
import torch

PACKAGES = (
    "medxfer", "torch", "torchvision", "lightning", "torchmetrics", "monai", "albumentations", "mlflow", "pydicom",
    "scikit-learn", "numpy", "pillow",
)  # fmt: skip


def versions() -> dict[str, str]:
    """Return the version of Python and of each package that can change a result."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed as a package"
    return found


def hardware() -> dict[str, str]:
    """Return processor, cores, memory and GPUs."""
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu_name(),
        "cores": str(psutil.cpu_count(logical=True)),
        "memory_mb": str(psutil.virtual_memory().total // 2**20),
        "gpus": ", ".join(gpus) or "none",
    }


def git_commit() -> str | None:
    """Return the commit of the checkout that medxfer runs from, with `-dirty` if it was changed; None outside one."""
    folder = Path(__file__).resolve().parents[2]
    if not (folder / ".git").exists():
        return None
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown"
