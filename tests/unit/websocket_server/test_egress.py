"""The way out: order, merging, the bound, the close, over a transport that stops and goes on as the test says."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.types import Message

from duologue.protocol import frames
from duologue.websocket_server import egress as module
from duologue.websocket_server.egress import Egress


class Peer:
    """ASGI's `send` and the transport below it; `blocked` is a peer that does not read."""

    def __init__(self) -> None:
        self.sent: list[str] = []
        self.direct = 0
        self.close_code: int | None = None
        self.aborted = False
        self.lost = False
        self._readable = asyncio.Event()
        self._readable.set()

    def block(self) -> None:
        self._readable.clear()

    def read(self) -> None:
        self._readable.set()

    async def send(self, message: Message) -> None:
        await self._readable.wait()
        if self.lost:
            raise OSError("gone")
        if message["type"] == "websocket.close":
            self.close_code = message["code"]
        else:
            assert self.close_code is None, "a frame after the close"
            self.sent.append(message["text"])

    def write_now(self, text: bytes) -> bool:
        if not self._readable.is_set() or self.lost:
            return False
        assert self.close_code is None, "a frame after the close"
        self.direct += 1
        self.sent.append(text.decode())
        return True

    def abort(self) -> None:
        self.aborted = self.lost = True
        self._readable.set()


class Rig:
    """An egress, its peer, and what it told."""

    def __init__(self, *, limit_bytes: int = 10_000, direct: bool = True) -> None:
        self.peer = Peer()
        self.written: list[int] = []
        self.overflows = 0
        self.egress: Egress[int] = Egress(
            self.peer.send,
            self.peer if direct else None,
            limit_bytes=limit_bytes,
            on_written=self.written.append,
            on_overflow=self._overflow,
        )

    def _overflow(self) -> None:
        self.overflows += 1
        self.egress.close(1013, drop=True)

    async def settle(self) -> None:
        while self.egress._writer is not None:
            await asyncio.wait([self.egress._writer])


def _delta(seq: int, *, message: str = "m", attempt: int = 1, from_seq: int | None = None) -> bytes:
    delta = frames.Delta(
        message_id=message, conversation_id="c", attempt=attempt, seq=seq, from_seq=from_seq, content=f"<{seq}>"
    )
    return frames.encode(delta)


def _decoded(texts: list[str]) -> list[dict[str, Any]]:
    return [json.loads(text) for text in texts]


@pytest.mark.parametrize("direct", [True, False])
async def test_frames_leave_in_their_order(direct: bool) -> None:
    rig = Rig(direct=direct)
    rig.egress.put(b"1")
    rig.egress.put_durable(b"2", 2)
    rig.egress.put_delta(_delta(1))
    rig.egress.put(b"4")
    await rig.settle()
    assert rig.peer.sent == ["1", "2", _delta(1).decode(), "4"]
    assert rig.peer.direct == (4 if direct else 0)
    assert rig.written == [2]


async def test_frame_never_overtakes_what_waits() -> None:
    rig = Rig()
    rig.peer.block()
    rig.egress.put_durable(b"1", 1)
    await asyncio.sleep(0)
    rig.peer.read()  # the transport would take it now, but the first is still on its way
    rig.egress.put_durable(b"2", 2)
    assert rig.written == []
    await rig.settle()
    assert (rig.peer.sent, rig.written) == (["1", "2"], [1, 2])
    assert rig.egress.waiting_bytes == 0


async def test_neighbouring_deltas_become_one_when_the_queue_backs_up() -> None:
    rig = Rig()
    rig.peer.block()
    rig.egress.put(b"{}")
    for seq in range(1, 6):
        rig.egress.put_delta(_delta(seq))
    rig.egress.put(b"{}")
    rig.egress.put_delta(_delta(7, from_seq=6))
    rig.egress.put_delta(_delta(8))
    rig.peer.read()
    await rig.settle()
    deltas = [frame for frame in _decoded(rig.peer.sent) if frame]
    assert [(frame["from_seq"], frame["seq"]) for frame in deltas] == [(1, 5), (6, 8)]
    assert deltas[0]["content"] == "<1><2><3><4><5>"


@pytest.mark.parametrize(
    "second",
    [_delta(2, message="n"), _delta(2, attempt=2), _delta(3), _delta(1)],
    ids=["message", "attempt", "gap", "again"],
)
async def test_deltas_that_do_not_follow_stay_apart(second: bytes) -> None:
    rig = Rig()
    rig.peer.block()
    rig.egress.put_delta(_delta(1))
    rig.egress.put_delta(second)
    rig.peer.read()
    await rig.settle()
    assert rig.peer.sent == [_delta(1).decode(), second.decode()]


async def test_more_than_the_bound_is_dropped_and_told_once() -> None:
    rig = Rig(limit_bytes=2_000)
    rig.peer.block()
    for _ in range(100):
        rig.egress.put(b"x" * 500)
        assert rig.egress.waiting_bytes <= 2_000
    assert rig.overflows == 1
    rig.peer.read()
    await rig.settle()
    assert rig.peer.close_code == 1013
    assert len(rig.peer.sent) <= 1


async def test_deltas_that_merge_are_bounded_too() -> None:
    rig = Rig(limit_bytes=2_000)
    rig.peer.block()
    seq = 0
    while not rig.overflows:
        seq += 1
        rig.egress.put_delta(_delta(seq))
    assert seq > 300  # about five characters each, the frame around them once
    rig.peer.read()
    await rig.settle()


async def test_close_waits_for_what_was_put_before_and_takes_nothing_after() -> None:
    rig = Rig()
    rig.peer.block()
    rig.egress.put(b"1")
    rig.egress.close(1012, drop=False)
    rig.egress.put(b"2")
    rig.egress.close(4401, drop=False)
    rig.peer.read()
    await rig.settle()
    assert (rig.peer.sent, rig.peer.close_code) == (["1"], 1012)
    await rig.egress.aclose()


async def test_close_that_cannot_be_written_ends_in_an_abort(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CLOSE_SECONDS", 0.01)
    rig = Rig()
    rig.peer.block()
    rig.egress.put(b"1")
    rig.egress.close(1013, drop=True)
    await rig.settle()
    assert rig.peer.aborted
    assert rig.peer.close_code is None


async def test_drained_returns_when_there_is_room_again() -> None:
    rig = Rig(limit_bytes=4_000)
    rig.peer.block()
    await rig.egress.drained()
    for _ in range(6):
        rig.egress.put(b"x" * 500)
    waiting = asyncio.create_task(rig.egress.drained())
    await asyncio.sleep(0)
    assert not waiting.done()
    rig.peer.read()
    await waiting
    assert rig.egress.waiting_bytes <= 1_000


@pytest.mark.parametrize("end", ["lost", "closed", "overflow", "aclose"])
async def test_drained_returns_when_nothing_more_will_be_sent(end: str) -> None:
    rig = Rig(limit_bytes=4_000)
    rig.peer.block()
    for _ in range(6):
        rig.egress.put(b"x" * 500)
    waiting = asyncio.create_task(rig.egress.drained())
    await asyncio.sleep(0)
    if end == "lost":
        rig.peer.lost = True
    elif end == "closed":
        rig.egress.close(1012, drop=False)
    elif end == "overflow":
        rig.egress.put(b"x" * 5000)
    elif end == "aclose":
        rig.peer.abort()
        await rig.egress.aclose()
    rig.peer.read()
    await waiting
    await rig.settle()


async def test_lost_client_ends_the_writer_quietly() -> None:
    rig = Rig()
    rig.peer.block()
    rig.egress.put_durable(b"1", 1)
    rig.peer.lost = True
    rig.peer.read()
    await rig.settle()
    rig.egress.put_durable(b"2", 2)
    await rig.egress.aclose()
    assert (rig.peer.sent, rig.written) == ([], [])


_STEPS = st.lists(st.sampled_from(["delta", "delta", "durable", "other", "block", "read", "turn"]), max_size=60)


@given(_STEPS)
def test_any_stops_and_goes_lose_nothing_and_keep_the_order(steps: list[str]) -> None:
    asyncio.run(_play(steps))


async def _play(steps: list[str]) -> None:
    rig = Rig(limit_bytes=1_000_000)
    expected: list[str] = []
    seq = 0
    for number, step in enumerate(steps):
        if step == "delta":
            seq += 1
            rig.egress.put_delta(_delta(seq))
            expected.append(f"<{seq}>")
        elif step == "durable":
            rig.egress.put_durable(json.dumps({"content": f"d{number}"}).encode(), number)
            expected.append(f"d{number}")
        elif step == "other":
            rig.egress.put(json.dumps({"content": f"o{number}"}).encode())
            expected.append(f"o{number}")
        elif step == "block":
            rig.peer.block()
        elif step == "read":
            rig.peer.read()
        else:
            await asyncio.sleep(0)
    rig.peer.read()
    await rig.settle()
    assert "".join(frame["content"] for frame in _decoded(rig.peer.sent)) == "".join(expected)
    assert rig.written == [number for number, step in enumerate(steps) if step == "durable"]
    assert rig.egress.waiting_bytes == 0
