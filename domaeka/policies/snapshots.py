"""Outbox snapshots: a device's waiting messages and last message ids, kept over an orderly stop."""

from math import inf
from typing import Literal

import msgspec

from domaeka.policies.outbox import Outbox, Outgoing, Priority
from domaeka.wire import Media, MediaType, Reply, sayable

#: Message ids of a device that are remembered.  Source: docs/protocol.md, "ack".
MAX_CLIENT_IDS = 2000


class ClientIds:
    """Ids of the last messages that a client sent."""

    __slots__ = ("_ids", "_max_ids")

    def __init__(self, max_ids: int = MAX_CLIENT_IDS) -> None:
        """@param max_ids: most that are kept; the oldest goes first."""
        self._max_ids = max_ids
        self._ids: dict[str, None] = {}

    def seen(self, client_id: str) -> bool:
        """True if C{client_id} is known; from now on it is."""
        ids = self._ids
        if client_id in ids:
            return True
        if len(ids) >= self._max_ids:
            del ids[next(iter(ids))]
        ids[client_id] = None
        return False

    def __contains__(self, client_id: object) -> bool:
        """True if C{client_id} is known."""
        return client_id in self._ids

    def prepend(self, older: list[str]) -> None:
        """Add ids from before all these, oldest first."""
        ids = dict.fromkeys([*older, *self._ids])
        self._ids = dict.fromkeys(list(ids)[-self._max_ids :])

    def dump(self) -> list[str]:
        """All ids, oldest first."""
        return list(self._ids)


class SavedMessage(msgspec.Struct, omit_defaults=True):
    """
    A message as the store keeps it: the text, or the files, or the addresses.

    @ivar remaining: the time for which it may still wait, in seconds.
    """

    room: str
    channel_id: str | None
    bot_name: str
    event: Literal["messageResponse", "scheduleMessage", "broadcastMessage"]
    priority: Priority
    ttl: float
    remaining: float
    number: int = 0
    text: str | None = None
    files: tuple[bytes, ...] = ()
    addresses: tuple[str, ...] = ()
    kind: MediaType = "image"
    format: str = "png"
    wait_ms: int | None = None


class OutboxSnapshot(msgspec.Struct):
    """
    A device's outbox as the store keeps it.

    @ivar saved_at: by the wall clock, in seconds.
    @ivar away: the time for which its client stays away from then on, in seconds.
    """

    epoch: str
    next_number: int
    saved_at: float
    messages: list[SavedMessage]
    client_ids: list[str]
    away: float = 0.0


def take_snapshot(outbox: Outbox, client_ids: ClientIds, now: float, wall: float) -> OutboxSnapshot:
    """
    Snapshot of a device, to be kept over a stop.

    @param now: by the clock of C{outbox}, which another process does not share.
    @param wall: by the wall clock.
    """
    return OutboxSnapshot(
        outbox.epoch,
        outbox.next_number,
        wall,
        [saved_message(item, item.expires_at - now) for item in outbox.held()],
        client_ids.dump(),
        max(0.0, outbox.away_until - now),
    )


def load_snapshot(
    state: OutboxSnapshot, outbox: Outbox, client_ids: ClientIds, now: float, wall: float
) -> bool:
    """
    Put a snapshot into C{outbox} and C{client_ids}.  Messages that expired meanwhile are counted.

    They go ahead of what waits in C{outbox}, under their numbers, unless it has an epoch or has
    given numbers already: then behind it, as if they were new.

    @param now: by the clock of C{outbox}.
    @param wall: by the wall clock.
    @return: whether they went behind.
    """
    # The wall clock may have stepped back over the stop.
    elapsed = max(0.0, wall - state.saved_at)
    messages = [
        restored_message(saved, now + saved.remaining - elapsed) for saved in state.messages
    ]
    client_ids.prepend(state.client_ids)
    if outbox.epoch or outbox.next_number > 1:
        for item in sorted(messages, key=lambda item: item.number or inf):
            outbox.put(item.reply, item.priority, item.expires_at - now)
        return True
    outbox.epoch = state.epoch
    outbox.restore(messages, state.next_number)
    if state.away > elapsed:
        outbox.stay_away(now + state.away - elapsed)
    return False


def saved_message(item: Outgoing, remaining: float = 0.0) -> SavedMessage:
    """A message as the store keeps it."""
    reply = item.reply
    saved = SavedMessage(
        sayable(reply.room),
        reply.channel_id,
        sayable(reply.bot_name),
        reply.event,
        item.priority,
        item.ttl,
        remaining,
        item.number,
    )
    content = reply.content
    if isinstance(content, str):
        saved.text = sayable(content)
        return saved
    saved.files = tuple(piece for piece in content.pieces if isinstance(piece, bytes))
    saved.addresses = tuple(piece for piece in content.pieces if isinstance(piece, str))
    saved.kind = content.kind
    saved.format = content.format
    saved.wait_ms = content.wait_ms
    return saved


def restored_message(saved: SavedMessage, expires_at: float) -> Outgoing:
    """A message of the store, to wait until C{expires_at} by the clock of its outbox."""
    content: str | Media
    if saved.text is not None:
        content = saved.text
    else:
        content = Media(saved.files or saved.addresses, saved.kind, saved.format, saved.wait_ms)
    reply = Reply(saved.room, saved.channel_id, saved.bot_name, content, saved.event)
    return Outgoing(reply, saved.priority, reply.size, saved.ttl, expires_at, None, saved.number)
