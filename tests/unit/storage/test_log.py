"""Commits: created once, and settled by nonce when the answer is lost."""

from __future__ import annotations

from typing import Any

import pytest
from faults import not_durable

from compass.errors import StorageError, UnavailableError
from compass.storage.log.log import Log, Record, new_nonce


def record(**fields: Any) -> Record:
    return Record(prev="p", nonce=new_nonce(), next=1, **fields)


@pytest.fixture
def log(disk: Any) -> Log:
    return Log(disk.objects, "some-uuid")


def test_a_record_round_trips(log: Log) -> None:
    """What was committed is read."""
    written = record(
        rows=[(1, 2, 3, "f", 0, "text", "chunk", None, 5, None, "g", "{}")],
        dead=[4],
        takeover={"host": "h", "pid": 1},
    )
    assert log.create(1, written)
    assert log.read(1) == written
    assert log.read(2) is None


def test_a_place_is_taken_once(log: Log) -> None:
    """The second record at a place loses, and the first stays."""
    first = record()
    assert log.create(1, first)
    assert not log.create(1, record())
    assert log.read(1) == first


def test_a_lost_answer_of_ones_own_is_a_commit(disk: Any, log: Log) -> None:
    """A create that took effect and whose answer was lost is recognised by its nonce."""
    disk.objects.after = lose_answer
    mine = record()
    assert log.create(1, mine)
    assert log.read(1) == mine


def test_a_lost_answer_of_anothers_is_none(disk: Any, log: Log) -> None:
    """Where the answer was lost and another's record of the same content is there, it is the other's."""
    log.create(1, record())
    disk.objects.before = lose_answer
    assert not log.create(1, record())


def test_a_create_that_met_its_own_first_try_is_a_commit(disk: Any, log: Log) -> None:
    """A client that retries by itself and then meets its own object has committed."""
    mine = record()
    real = disk.objects.objects.create

    def twice(operation: str, key: str) -> None:
        if operation == "create":
            disk.objects.before = lambda *_: None
            log.create(1, mine)

    disk.objects.before = twice
    assert log.create(1, mine)
    assert disk.objects.objects.create == real


def test_ones_own_record_that_may_not_last_is_no_commit(disk: Any, log: Log) -> None:
    """A record that can be read back, and cannot be made durable, is in doubt: a power cut may take it."""
    disk.objects.after = not_durable("create", "/log/")
    mine = record()
    with pytest.raises(UnavailableError):
        log.create(1, mine)
    assert log.read(1) == mine
    disk.objects.after = lambda *_: None
    assert log.create(1, mine)


def test_an_unknown_fate_is_said(disk: Any, log: Log) -> None:
    """A failed create that has left nothing may yet appear: neither yes nor no."""
    disk.objects.before = lose_answer
    with pytest.raises(UnavailableError):
        log.create(1, record())


def test_a_damaged_record_is_noticed(disk: Any, log: Log) -> None:
    """A record that does not match its checksum is an error, never an end of the log."""
    log.create(1, record(dead=[1, 2, 3]))
    path = disk.objects.local_path(log.key(1))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(StorageError):
        log.read(1)


def lose_answer(operation: str, key: str) -> None:
    if operation == "create":
        raise TimeoutError("the answer was lost")
