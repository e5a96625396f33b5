"""A short run of `make fuzz`, and that it can fail."""

import os
import re
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "fuzz.py"


def run(*arguments: str, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPT), "--workers", "2", *arguments],
        capture_output=True, text=True, check=False, env={**os.environ, **(environment or {})},
    )  # fmt: skip


def test_damaged_files_give_a_picture_or_a_typed_error(tmp_path):
    # Numbers that `make fuzz` does not reach, so that together they see more.
    found = run("--files", "600", "--first", "20000", "--keep", str(tmp_path / "kept"))
    assert found.returncode == 0, found.stdout + found.stderr
    assert "600 mutations; rules broken: 0" in found.stdout
    for kind in ("png", "jpg", "tif", "bmp", "webp", "dcm"):
        assert re.search(rf"^{kind} +\d+ +[1-9]\d* +[1-9]\d* ", found.stdout, re.MULTILINE), found.stdout


def test_an_untyped_error_breaks_the_rules_and_its_file_is_kept(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(
        "import multiprocessing\n"
        "from PIL import ImageOps\n"
        "original = ImageOps.exif_transpose\n"
        "class Panic(BaseException): pass\n"
        "def exif_transpose(image, **options):\n"
        "    if multiprocessing.current_process().name.startswith('Loky'):\n"  # where mutations are read
        "        raise Panic\n"
        "    return original(image, **options)\n"
        "ImageOps.exif_transpose = exif_transpose\n"
    )
    found = run("--files", "300", "--keep", str(tmp_path / "kept"), environment={"PYTHONPATH": str(tmp_path)})
    assert found.returncode == 1, found.stdout + found.stderr
    assert "untyped: Panic" in found.stdout
    assert list((tmp_path / "kept").iterdir())
