"""What a benchmark ran on, in one line above its table."""

from importlib.metadata import version

import torch

from medxfer.tracking.environment import hardware


def describe() -> str:
    """Return processor, cores, memory, GPUs, and the versions that decide speed, as one line."""
    found = hardware()
    memory = f"{int(found['memory_mb']) / 1024:.0f} GB memory"
    bf16 = "bf16 in hardware" if _has_bf16() else "no bf16 in hardware"
    gpus = found["gpus"] if found["gpus"] != "none" else "no GPU"
    packages = ", ".join(
        f"{name} {version(name)}" for name in ("torch", "lightning", "numpy", "opencv-python-headless")
    )
    return f"{found['cpu']}, {found['cores']} cores, {memory}, {bf16}, {gpus}; {packages}"


def _has_bf16() -> bool:
    """Return whether the processor multiplies bf16 itself, rather than by way of float32."""
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(check() for name in names if (check := getattr(torch.cpu, name, None)))


if __name__ == "__main__":
    print(describe())
