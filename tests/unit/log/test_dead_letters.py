"""Setting a record aside: kept and copied, whatever it is, and then done."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from duologue.domain.errors import LogUnavailable, Permanent, StoreUnavailable
from duologue.log.committer import Holding
from duologue.log.dead_letters import MAX_COPY_BYTES, DeadLetterBox, storable, storable_origin, storable_record
from duologue.log.port import LogRecord, Partition

PARTITION = Partition("incoming_messages", 3)


class _Producer:
    """Takes what is small enough; fails as often as it is told to before."""

    def __init__(self, largest: int, failures: int = 0) -> None:
        self.appended: list[tuple[str, str, bytes, Mapping[str, str]]] = []
        self._largest = largest
        self._failures = failures

    async def append(self, topic: str, key: str, value: bytes, headers: Mapping[str, str]) -> None:
        if self._failures:
            self._failures -= 1
            raise LogUnavailable("away")
        if len(value) + sum(map(len, headers.values())) > self._largest:
            raise Permanent("too large")
        self.appended.append((topic, key, value, headers))


class _Store:
    """Keeps letters, after it has failed with these errors."""

    def __init__(self, *errors: Exception) -> None:
        self.kept: list[tuple[LogRecord, str, str]] = []
        self._errors = list(errors)

    async def keep(self, record: LogRecord, error: str, cause: str) -> None:
        if self._errors:
            raise self._errors.pop(0)
        self.kept.append((record, error, cause))


def _record(value: bytes = b"garbage", **headers: str) -> LogRecord:
    return LogRecord(PARTITION, 42, "key", value, headers, 0)


async def _bury(record: LogRecord, producer: _Producer, store: _Store, error: str = "no record") -> None:
    """Bury a record, and see that it is done."""
    holding = Holding(PARTITION, lambda: None)
    await DeadLetterBox(producer, store.keep).bury(holding.read(record), error, "unreadable")
    assert (holding.undone, holding.committable) == (0, 43)


async def test_record_is_copied_with_where_it_stood_and_why() -> None:
    producer, store = _Producer(10_000), _Store()
    await _bury(_record(correlation_id="c", error="of its own"), producer, store)
    place = {"topic": "incoming_messages", "partition": "3", "offset": "42"}
    why = {"error": "no record", "cause": "unreadable"}
    headers = {"correlation_id": "c"} | place | why
    assert producer.appended == [("incoming_messages.dlq", "key", b"garbage", headers)]
    assert store.kept == [(_record(correlation_id="c", error="of its own"), "no record", "unreadable")]


async def test_record_is_done_only_when_the_store_and_the_log_have_it() -> None:
    producer, store = _Producer(10_000, failures=2), _Store(StoreUnavailable("away"))
    await _bury(_record(), producer, store)
    assert len(producer.appended) == len(store.kept) == 1


@pytest.mark.parametrize("size", [100_000, MAX_COPY_BYTES + 1])
async def test_record_larger_than_its_dead_letter_topic_takes_is_cut_there(size: int) -> None:
    producer, store = _Producer(70_000), _Store()
    await _bury(_record(b"x" * size, large="y" * 70_000), producer, store)
    [(_, _, value, headers)] = producer.appended
    assert (value, headers["size"], "large" in headers) == (b"x" * 65_536, str(size), False)
    [(kept, _, _)] = store.kept
    assert len(kept.value) == size


async def test_record_that_neither_the_store_nor_the_log_takes_is_passed_nevertheless() -> None:
    producer, store = _Producer(10), _Store(Permanent("refused"))
    await _bury(_record(), producer, store)
    assert (producer.appended, store.kept) == ([], [])


async def test_error_of_any_length_and_text_is_told_in_short() -> None:
    producer = _Producer(10_000)
    await _bury(_record(), producer, _Store(), error="\0\ud800" + "x" * 100_000)
    [(_, _, _, headers)] = producer.appended
    assert headers["error"].startswith("\\x00\\ud800xxx")
    assert len(headers["error"]) == 2000


def test_storable_record_of_a_huge_one_has_its_beginning_and_its_size() -> None:
    kept = storable_record(_record(b"x" * 20_000_000), "too large")
    assert (len(kept["value"]), kept["size"]) == (16 * 1024 * 1024, 20_000_000)


def test_storable_origin_is_what_the_bytes_tell() -> None:
    value = b'{"v":99,"type":"message_submitted","tenant":"default","uid":"u","message_id":"m","attempt":3,"new":[1]}'
    origin = storable_origin(_record(value))
    assert (origin["tenant"], origin["uid"], origin["message_id"], origin["attempt"]) == ("default", "u", "m", None)
    assert set(storable_origin(_record(b"\xff")).values()) == {None}


def test_storable_text_has_nothing_that_databases_refuse() -> None:
    assert storable("a\0b\ud800c ü") == "a\\x00b\\ud800c ü"
