import pytest

from medxfer.errors import CheckpointError, ConfigError, DataError, MedxferError, listed


@pytest.mark.parametrize("kind", [ConfigError, DataError, CheckpointError])
def test_every_kind_is_a_users_mistake(kind):
    assert issubclass(kind, MedxferError)


def test_long_lists_are_cut_and_counted():
    lines = listed("title:", (str(i) for i in range(25)), limit=3).splitlines()
    assert lines == ["title:", "  - 0", "  - 1", "  - 2", "  … and 22 more"]


@pytest.mark.parametrize(("count", "lines"), [(0, 1), (1, 2), (20, 21), (21, 22), (400, 22)])
def test_at_most_twenty_faults_are_shown(count, lines):
    text = listed("title:", ["fault"] * count)
    assert len(text.splitlines()) == lines
    assert ("… and" in text) == (count > 20)
