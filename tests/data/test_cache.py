"""Results that are kept are found by everything they depend on."""

from medxfer.data.cache import remembered


def test_a_result_is_computed_once_for_each_key(tmp_path):
    calls = []

    def compute() -> list[int]:
        calls.append(1)
        return [len(calls)]

    assert remembered(tmp_path, "sums", ["a", "b"], compute) == [1]
    assert remembered(tmp_path, "sums", ["a", "b"], compute) == [1]
    assert remembered(tmp_path, "sums", ["ab"], compute) == [2]
    assert remembered(tmp_path, "sums", ["a", "c"], compute) == [3]
    assert remembered(tmp_path, "others", ["a", "b"], compute) == [4]
    assert len(list(tmp_path.iterdir())) == 4


def test_a_damaged_result_is_computed_again(tmp_path):
    remembered(tmp_path, "sums", ["a"], lambda: 1)
    (file,) = tmp_path.iterdir()
    file.write_text("[1,")
    assert remembered(tmp_path, "sums", ["a"], lambda: 2) == 2
    assert remembered(tmp_path, "sums", ["a"], lambda: 3) == 2


def test_only_the_user_may_read_what_is_kept(tmp_path):
    remembered(tmp_path, "sums", ["a"], lambda: 1)
    (file,) = tmp_path.iterdir()
    assert file.stat().st_mode & 0o077 == 0


def test_a_full_disk_only_means_that_nothing_is_kept(tmp_path, monkeypatch):
    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    assert remembered(tmp_path, "sums", ["a"], lambda: 1) == 1
    assert list(tmp_path.iterdir()) == []
