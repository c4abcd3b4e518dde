"""This node's connections: one subscription per user, fanned out to their sockets, nothing lost and nothing twice."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Self

import msgspec
import structlog

from duologue.delivery.attachment import Answered, Attachment, Greet, Socket
from duologue.delivery.cursors import Cursors
from duologue.delivery.names import EventPosition, names_of, parse_event_id
from duologue.delivery.probe import Echo, Probe
from duologue.delivery.publication import REVOKED, parse
from duologue.delivery.stream import AttachReply, UserStreams
from duologue.delivery.tasks import Tasks
from duologue.domain.errors import DuologueError, RedisUnavailable
from duologue.domain.ids import UserKey
from duologue.domain.tasks import spread
from duologue.engines.redis import Subscription
from duologue.observability import metrics

_log = structlog.get_logger(__name__)

_ASKED_AT_ONCE: Final = 128
_RESTORED_AT_ONCE: Final = 256
_CHECKED_AT_ONCE: Final = 256
_FIRST_DELAY_SECONDS: Final = 0.05
_LONGEST_DELAY_SECONDS: Final = 1.0
_PROBES_UNHEARD: Final = 2
"""In a row, for the subscription to count as dead: a process that was stopped for a while finds the first too late."""
CLOSE_INTERVAL_SECONDS: Final = 0.01
"""Between two sockets of a server that are closed together, as long as all of them fit into the time for it."""
_CLOSE_SPREAD_SECONDS: Final = 2.0
"""Within which all sockets are closed whose feed is lost, so that not all of them come to the next server at once."""


SaidBefore = Callable[[UserKey, int], Awaitable[bool]]
"""Asks, for a user and milliseconds since the Unix epoch. May raise Retryable."""


class _Feed:
    """A user with sockets here, and the subscription of their channel."""

    __slots__ = ("attachments", "channel", "generation", "lock", "sent", "user")

    def __init__(self, user: UserKey) -> None:
        self.user = user
        self.channel = names_of(user).channel
        self.attachments: dict[Socket, Attachment] = {}
        self.lock = asyncio.Lock()
        """Serialises SUBSCRIBE and UNSUBSCRIBE."""
        self.sent = False
        """Whether a SUBSCRIBE may have reached Redis."""
        self.generation = 0
        """The connection on which the channel is surely subscribed; 0: none."""

    @property
    def number(self) -> int | None:
        """The least running number of its live sockets; None if all are catching up."""
        return min((each.number for each in self.attachments.values() if each.live), default=None)


class Hub:
    """All sockets of this process. Open it with `async with`: its tasks run within.

    It outlives Redis: sockets stay, and when Redis is back each catches up. Only if Redis answers, but nothing comes on
    the subscription, it is `deaf`: the sockets are told that their feed is lost, none is attached, and the subscription
    gets another connection, until it hears itself again.
    """

    def __init__(
        self,
        url: str,
        streams: UserStreams,
        *,
        check_seconds: float = 25.0,
        probe_seconds: float = 2.0,
        probe_timeout_seconds: float = 3.0,
        cursor_delay_seconds: float = 40.0,
        timeout_seconds: float = 5.0,
        may_be_away: bool = False,
        said_before: SaidBefore | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Subscribe at `url`, and attach by `streams`.

        Args:
            url: the Redis that `streams` uses.
            streams: the users' streams.
            check_seconds: how often numbers are compared with Redis.
            probe_seconds: how often the subscription is probed.
            probe_timeout_seconds: how long a probe may take. A subscription that dies is noticed within `probe_seconds`
                and twice this.
            cursor_delay_seconds: how long after a write a socket must have stayed open for the cursor to pass.
            timeout_seconds: after which a subscription that does not answer is given up.
            may_be_away: entering does not need an answer: the subscription comes when Redis does.
            said_before: tells whether a user had said anything before a time. None: nobody can tell.
            clock: seconds, monotonic.
        """
        self._streams = streams
        self._said_before = said_before
        self._check_seconds = check_seconds
        self._probe_seconds = probe_seconds
        self._probe = Probe(streams, timeout_seconds=probe_timeout_seconds)
        self._subscription = Subscription(
            url,
            name="hub",
            on_message=self._on_message,
            on_connected=self._on_connected,
            channel=self._probe.channel,
            timeout_seconds=timeout_seconds,
            may_be_away=may_be_away,
        )
        self._generation = 1
        self._reconnected = asyncio.Event()
        self._feeds: dict[UserKey, _Feed] = {}
        self._channels: dict[bytes, _Feed] = {}
        self._attachments: dict[Socket, Attachment] = {}
        self._asking = asyncio.Semaphore(_ASKED_AT_ONCE)
        self._deaf = False
        self._redis_met = streams.connections
        self._cursors = Cursors(streams, delay_seconds=cursor_delay_seconds, clock=clock)
        self._tasks = Tasks("hub")

    async def __aenter__(self) -> Self:
        """Connect.

        Raises:
            RedisUnavailable: nothing answers, and it may not be away.
        """
        await self._subscription.__aenter__()
        for step in (self._restore, self._check_in_time, self._probe_in_time, self._cursors.tick):
            self._tasks.spawn_loop(step)
        return self

    async def __aexit__(self, *_: object) -> None:
        """Let go of every socket. Those not detached before are not told."""
        for attachment in self._attachments.values():
            attachment.gone = True
        await self._tasks.aclose()
        await self._cursors.flush()
        await self._subscription.__aexit__()

    # For the websocket-server

    @property
    def ready(self) -> bool:
        """Whether publications reach this process, as far as its connection and the last probe know."""
        return self._subscription.connected.is_set() and not self._deaf

    @property
    def deaf(self) -> bool:
        """Whether the subscription was found dead while Redis answers: sockets are better off on another server."""
        return self._deaf

    def connections(self, user: UserKey) -> int:
        """How many sockets a user has here."""
        feed = self._feeds.get(user)
        return len(feed.attachments) if feed else 0

    def oldest(self, user: UserKey) -> Socket | None:
        """Return a user's socket that was attached first."""
        feed = self._feeds.get(user)
        return next(iter(feed.attachments), None) if feed else None

    async def attach(self, user: UserKey, socket: Socket, last_event_id: str | None, greet: Greet) -> Attachment:
        """Make a socket hear its user's stream: what it missed, then snapshots, then everything as it comes.

        `greet` is called before the first frame, and again whenever not everything missed is there to be sent
        (`recovered` false): it sends the `connection` frame. The caller detaches the socket in the end.

        Raises:
            RedisUnavailable: Redis cannot be reached, or not be heard; the socket is not attached.
        """
        if self._deaf:
            raise RedisUnavailable("publications do not reach this process")
        feed = self._feed_of(user)
        position = None if last_event_id is None else parse_event_id(last_event_id)
        attachment = Attachment(user, socket, position, greet)
        # It joins before anything is awaited: a detach that empties the feed meanwhile sees it.
        feed.attachments[socket] = self._attachments[socket] = attachment
        try:
            await self._subscribe(feed)
            while not await self._ask(attachment):
                pass
        except BaseException:
            await self.detach(socket)
            raise
        return attachment

    async def resume(self, socket: Socket, last_event_id: str) -> None:
        """Attach again on the same socket, once Redis answers: greeting, missed frames, snapshots, live frames."""
        attachment = self._attachments.get(socket)
        if attachment is not None:
            attachment.resume(parse_event_id(last_event_id))
            self._catch_up(attachment, "resume")

    async def detach(self, socket: Socket, *, clean: bool = False) -> None:
        """Forget a socket; does nothing if it is not attached.

        Args:
            socket: the socket, closed or about to be.
            clean: the client closed it in order: all that was written to it has arrived.
        """
        attachment = self._attachments.pop(socket, None)
        if attachment is None:
            return
        attachment.gone = True
        self._cursors.closed(socket, attachment.user, clean=clean)
        feed = self._feeds[attachment.user]
        del feed.attachments[socket]
        if not feed.attachments:  # in a task of its own: the caller may be cancelled, the subscription must end
            await asyncio.shield(self._tasks.spawn(self._unsubscribe(feed)))

    def written(self, socket: Socket, event: EventPosition) -> None:
        """A durable frame has been handed to the transport."""
        attachment = self._attachments.get(socket)
        if attachment is not None:
            self._cursors.written(socket, attachment.user, event)

    # Subscriptions

    def _feed_of(self, user: UserKey) -> _Feed:
        feed = self._feeds.get(user)
        if feed is None:
            feed = self._feeds[user] = _Feed(user)
            self._channels[feed.channel.encode()] = feed
        return feed

    async def _subscribe(self, feed: _Feed) -> None:
        async with feed.lock:
            if feed.generation == self._generation or not feed.attachments:
                return
            if not self._subscription.connected.is_set():  # a command now would come between the greeting's
                raise RedisUnavailable("Redis cannot be reached")
            generation = self._generation
            feed.sent = True  # even if this is cancelled while it waits
            await self._subscription.subscribe(feed.channel)
            feed.generation = generation

    async def _unsubscribe(self, feed: _Feed) -> None:
        async with feed.lock:
            if feed.attachments or self._feeds.get(feed.user) is not feed:
                return
            if feed.sent and self._subscription.connected.is_set():
                feed.sent, feed.generation = False, 0  # before it is sent: whatever happens, the next one subscribes
                try:
                    await self._subscription.unsubscribe(feed.channel)
                except RedisUnavailable:
                    _log.debug("unsubscribed_by_disconnection", channel=feed.channel)
            if not feed.attachments:  # one that joined meanwhile waits for the lock
                del self._feeds[feed.user]
                del self._channels[feed.channel.encode()]

    def _on_connected(self) -> None:
        """The subscription is another connection now, on which nothing is subscribed."""
        self._generation += 1
        self._reconnected.set()

    async def _restore(self) -> None:
        """Once the subscription is another connection: subscribe everything again, and let all sockets catch up."""
        await self._reconnected.wait()
        self._reconnected.clear()
        feeds = list(self._feeds.values())
        for start in range(0, len(feeds), _RESTORED_AT_ONCE):
            some = feeds[start : start + _RESTORED_AT_ONCE]
            await asyncio.gather(*(self._restore_feed(feed, "reconnected") for feed in some))
        _log.info("subscriptions_restored", users=len(feeds))

    async def _restore_feed(self, feed: _Feed, reason: str) -> None:
        """Subscribe a user's channel, and then let the sockets catch up."""
        try:
            await self._subscribe(feed)
        except RedisUnavailable:  # lost once more: the next connection restores it
            return
        for attachment in list(feed.attachments.values()):
            self._catch_up(attachment, reason)

    # Catching up

    def _catch_up(self, attachment: Attachment, reason: str) -> None:
        """Have a socket ask Redis what it missed; once more if it is asking already."""
        metrics.REATTACHES.labels(reason).inc()
        if attachment.catch_up():
            self._tasks.spawn(self._ask_until_live(attachment))

    async def _ask_until_live(self, attachment: Attachment) -> None:
        delay = _FIRST_DELAY_SECONDS
        while not attachment.gone:
            try:
                if await self._ask(attachment):
                    return
                delay = _FIRST_DELAY_SECONDS
            except RedisUnavailable:
                await asyncio.sleep(delay)
                delay = min(delay * 2, _LONGEST_DELAY_SECONDS)
            except Exception:
                attachment.socket.feed_lost()
                raise

    async def _ask(self, attachment: Attachment) -> bool:
        """Ask Redis once and send what it answers. True if the socket is live now, or gone."""
        async with self._asking:
            attachment.ask()
            reply = await self._reply_for(attachment)
        if attachment.gone:
            return True
        if reply.began_ms:  # it hears now where the stream stands: should it stay, later devices go on from there
            self._cursors.written(attachment.socket, attachment.user, reply.position)
        answered = attachment.answer(reply)
        if answered is Answered.MORE:
            await attachment.socket.drained()
        return answered is Answered.LIVE

    async def _reply_for(self, attachment: Attachment) -> AttachReply:
        if attachment.position is not None:
            return await self._streams.attach_behind(attachment.user, attachment.position)
        reply = await self._streams.attach(attachment.user, None)
        if await self._has_lost(attachment.user, reply):
            return msgspec.structs.replace(reply, recovered=False)
        return reply

    async def _has_lost(self, user: UserKey, reply: AttachReply) -> bool:
        """Whether a client that does not say where it was may miss what Redis has lost: the user had said something
        before this epoch began, and no device was surely sent anything of it (rule Cursor)."""
        if not reply.began_ms or self._said_before is None:
            return False
        return await self._said_before(user, reply.began_ms)

    # Publications

    def _on_message(self, channel: bytes, payload: bytes) -> None:
        feed = self._channels.get(channel)
        if feed is None:
            if channel == self._probe.channel.encode():
                self._probe.hear(payload)
            return
        try:
            publication = parse(payload)
        except ValueError:
            _log.warning("publication_unreadable", channel=feed.channel)
            return
        if publication.kind == REVOKED:
            for attachment in list(feed.attachments.values()):
                attachment.socket.revoked()
            return
        for attachment in feed.attachments.values():
            if not attachment.receive(publication):
                self._catch_up(attachment, "gap")

    # The check

    async def _check_in_time(self) -> None:
        await asyncio.sleep(self._check_seconds)
        await self.check()

    async def check(self) -> None:
        """Compare each user's running number with Redis, and let the sockets catch up that lag behind."""
        feeds = list(self._feeds.values())
        for start in range(0, len(feeds), _CHECKED_AT_ONCE):  # in steps: it must not hold up the event loop
            if not await self._check(feeds[start : start + _CHECKED_AT_ONCE]):
                return

    async def _check(self, feeds: Sequence[_Feed]) -> bool:
        """Check some; false if that is not possible now."""
        seen = [(feed, number) for feed in feeds if (number := feed.number) is not None]
        try:
            numbers = await self._streams.numbers([feed.user for feed, _ in seen])
        except DuologueError as error:
            _log.warning("check_without_redis", error=str(error))
            return False
        # Redis had published all that it counted when the probe comes back, on the connection of the publications.
        if await self._probe.ask(self._subscription.connected) is not Echo.HEARD:
            return False
        for (feed, before), number in zip(seen, numbers, strict=True):
            self._compare(feed, before, number)
        return True

    def _compare(self, feed: _Feed, before: int, number: int | None) -> None:
        """A socket lags if Redis had counted further than it has come by now, or counts from less than it had.

        Perhaps Redis has forgotten the subscription of this channel alone: so it is subscribed again, before the
        sockets ask what they missed.
        """
        attachments = feed.attachments.values()
        if any(each.live and (number is None or each.number < number or number < before) for each in attachments):
            feed.generation = 0
            self._tasks.spawn(self._restore_feed(feed, "check"))

    # The probe

    async def _probe_in_time(self) -> None:
        await asyncio.sleep(self._probe_seconds)
        await self.probe()

    async def probe(self) -> None:
        """Find out whether the subscription is alive, and see to it that it is.

        If it is not, while Redis answers elsewhere, this server is at fault: sockets are better off on another. While
        Redis is away for all they stay; if it has been away, the subscription may have died with it, and a new
        connection is all that is needed.
        """
        for _ in range(_PROBES_UNHEARD):
            echo = await self._probe.ask(self._subscription.connected)
            if echo is Echo.HEARD:
                self._find_alive()
            if echo is not Echo.UNHEARD or self._renewed_after_absence():
                return
        await self._lose_feed()

    def _find_alive(self) -> None:
        if self._deaf:
            _log.info("feed_found_again")
        self._deaf = False
        self._redis_met = self._streams.connections

    def _renewed_after_absence(self) -> bool:
        """Give the subscription a new connection if Redis has been away since it was last heard; tell whether."""
        has_been_away = self._redis_met != self._streams.connections
        if has_been_away:
            self._redis_met = self._streams.connections
            self._subscription.renew("Redis has been away, and nothing is heard since")
        return has_been_away

    async def _lose_feed(self) -> None:
        """Send all sockets elsewhere, a few at a time, and listen anew."""
        if not self._deaf:
            metrics.SUBSCRIPTIONS_LOST.inc()
            _log.error("feed_lost", sockets=len(self._attachments))
        self._deaf = True
        self._subscription.renew("what Redis publishes does not come")
        sockets = list(self._attachments)
        async for socket in spread(sockets, pause_seconds=CLOSE_INTERVAL_SECONDS, within_seconds=_CLOSE_SPREAD_SECONDS):
            socket.feed_lost()
