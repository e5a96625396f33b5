import pytest
import torch

from medxfer.errors import ConfigError
from medxfer.training.trainer import build_predictor, limit_threads, resolve_precision, uses_gpu


def test_a_gpu_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert not uses_gpu("auto")
    assert not uses_gpu("cpu")
    with pytest.raises(ConfigError, match="PyTorch finds no CUDA GPU here"):
        uses_gpu("gpu")


def test_a_gpu_is_used_where_there_is_one_unless_the_user_says_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert uses_gpu("auto")
    assert uses_gpu("gpu")
    assert not uses_gpu("cpu")


@pytest.mark.parametrize(("asked", "found"), [("32", "32-true"), ("bf16", "bf16-mixed")])
def test_precision_as_asked(asked, found):
    assert resolve_precision(asked, on_gpu=False) == found
    assert resolve_precision(asked, on_gpu=True) == found


@pytest.mark.parametrize(
    ("capability", "bf16", "found"),
    [
        ("AVX512", True, "bf16-mixed"),
        ("AVX512", False, "32-true"),
        ("AVX2", False, "32-true"),
        ("AVX2", True, "32-true"),
    ],
)
def test_auto_is_bf16_only_where_the_processor_multiplies_it(monkeypatch, capability, bf16, found):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bf16)
    assert resolve_precision("auto", on_gpu=False) == found


def test_a_predictor_writes_nothing_and_is_deterministic(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    predictor = build_predictor(accelerator="cpu", precision="32-true")
    assert predictor.logger is None
    assert torch.are_deterministic_algorithms_enabled()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("before", "cores", "after"), [(4, 2, 2), (1, 8, 1)])
def test_threads_are_limited_to_the_cores_and_never_raised(before, cores, after):
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(before)
        limit_threads(cores)
        assert torch.get_num_threads() == after
    finally:
        torch.set_num_threads(threads)
