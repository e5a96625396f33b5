import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from medxfer.errors import CheckpointError, ConfigError
from medxfer.run_folder import RunFolder, write_text


def locking(path: Path, *, then: str = "") -> list[str]:
    script = "import sys; from pathlib import Path; from medxfer.run_folder import RunFolder, write_text; "
    return [sys.executable, "-c", script + "held = RunFolder(Path(sys.argv[1])).lock();" + then, str(path)]


def test_a_new_folder_is_made_once(tmp_path):
    run = RunFolder.create(tmp_path / "runs" / "a")
    assert run.checkpoints.is_dir()
    assert run.figures.is_dir()
    with pytest.raises(ConfigError, match=r"exists: choose another --tracking\.run_name, or go on with it: --resume"):
        RunFolder.create(run.path)


def test_an_unused_folder_can_be_removed_again(tmp_path):
    run = RunFolder.create(tmp_path / "a")
    run.lock()
    run.remove_empty()
    assert not run.path.exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(ConfigError, match=r"cannot be made: Permission denied"):
        RunFolder.create(tmp_path / "a")


def test_a_file_in_the_way_is_named(tmp_path):
    (tmp_path / "runs").write_text("")
    with pytest.raises(ConfigError, match=r"cannot be made: Not a directory"):
        RunFolder.create(tmp_path / "runs" / "a")


def test_only_a_run_can_be_opened(tmp_path):
    with pytest.raises(ConfigError, match=r"is not the folder of a run: .*config\.yaml does not exist"):
        RunFolder.open(tmp_path)
    (tmp_path / "config.yaml").write_text("")
    (tmp_path / "run.json").write_text("{}")
    assert RunFolder.open(tmp_path).read_record() == {}


def test_a_second_process_is_kept_out(tmp_path):
    run = RunFolder.create(tmp_path / "a")
    held = run.lock()
    command = locking(run.path)
    refused = subprocess.run(command, capture_output=True, text=True)
    assert "another process is working in" in refused.stderr
    held.release()
    assert subprocess.run(command, capture_output=True).returncode == 0


def test_the_record_is_changed_key_by_key(tmp_path):
    run = RunFolder.create(tmp_path / "a")
    run.update_record({"a": 1, "b": "é"})
    run.update_record({"a": 2})
    assert json.loads(run.record.read_text(encoding="utf-8")) == {"a": 2, "b": "é"} == run.read_record()


@pytest.mark.parametrize("content", ["", "{", "\xff"])
def test_a_damaged_record_is_named(tmp_path, content):
    run = RunFolder.create(tmp_path / "a")
    run.record.write_bytes(content.encode("latin-1"))
    with pytest.raises(CheckpointError, match=r"run\.json cannot be read"):
        run.read_record()


def test_a_text_appears_whole_or_not_at_all(tmp_path, monkeypatch):
    write_text(tmp_path / "a.txt", "before")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_text(tmp_path / "a.txt", "after")
    assert (tmp_path / "a.txt").read_text() == "before"


def test_a_killed_process_holds_nothing(tmp_path):
    run = RunFolder.create(tmp_path / "a")
    other = subprocess.Popen(
        locking(run.path, then="print('held', flush=True); sys.stdin.read()"), stdin=-1, stdout=-1, text=True
    )
    with other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(ConfigError, match="wait for it or stop it"):
            run.lock()
        other.send_signal(signal.SIGKILL)
    run.lock().release()


def test_a_disk_that_takes_no_more_leaves_the_file_before(tmp_path):
    run = RunFolder.create(tmp_path / "a")
    run.update_record({"a": 1})
    limited = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096)); "
    script = limited + "RunFolder(Path(sys.argv[1])).update_record({'a': 'x' * 100_000})"
    done = subprocess.run(locking(run.path, then=script), capture_output=True, text=True)
    assert done.returncode == 1
    assert "File too large" in done.stderr
    assert run.read_record() == {"a": 1}


def test_readers_see_whole_texts_only(tmp_path):
    path, seen = tmp_path / "a.json", set()
    texts = {letter * 50_000 for letter in "abc"}
    write_text(path, "a" * 50_000)
    written = threading.Event()

    def read() -> None:
        while not written.is_set():
            seen.add(path.read_text())

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(10):
        for text in texts:
            write_text(path, text)
    written.set()
    reader.join()
    assert seen
    assert seen <= texts
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_a_folder_that_holds_something_is_not_removed(tmp_path):
    run = RunFolder.create(tmp_path / "a")
    run.last.write_bytes(b"weights")
    with pytest.raises(OSError, match="not empty"):
        run.remove_empty()
    assert run.last.read_bytes() == b"weights"
