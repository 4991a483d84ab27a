"""
What of a device's mail survives an orderly stop: what waits for it, and what it has sent.
"""

from math import inf
from typing import Literal

import msgspec

from domaeka.messages import Media, MediaType, Reply, sayable
from domaeka.policies.outbox import Outbox, Outgoing, Priority

#: How many of a device's last message ids are known again.  Source: docs/protocol.md, "ack".
MAX_CLIENT_IDS = 2000


class ClientIds:
    """The last ids under which a client sent its messages."""

    __slots__ = ("_ids", "_max_ids")

    def __init__(self, max_ids: int = MAX_CLIENT_IDS) -> None:
        """@param max_ids: how many are kept; the oldest goes first."""
        self._max_ids = max_ids
        self._ids: dict[str, None] = {}

    def seen(self, client_id: str) -> bool:
        """Whether C{client_id} is known; from now on it is."""
        ids = self._ids
        if client_id in ids:
            return True
        if len(ids) >= self._max_ids:
            del ids[next(iter(ids))]
        ids[client_id] = None
        return False

    def __contains__(self, client_id: object) -> bool:
        """Whether C{client_id} is known."""
        return client_id in self._ids

    def had_before(self, older: list[str]) -> None:
        """Others were known before all these, oldest first."""
        ids = dict.fromkeys([*older, *self._ids])
        self._ids = dict.fromkeys(list(ids)[-self._max_ids :])

    def dump(self) -> list[str]:
        """All ids, oldest first."""
        return list(self._ids)


class SavedMessage(msgspec.Struct, omit_defaults=True):
    """
    A message as the store keeps it: the text, or the files, or the addresses.

    @ivar remaining: how long it may still wait, in seconds.
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


class MailboxState(msgspec.Struct):
    """
    A device's mail as the store keeps it.

    @ivar saved_at: by the wall clock, in seconds.
    @ivar away: how long from then on its client was told to stay away, in seconds.
    """

    epoch: str
    next_number: int
    saved_at: float
    messages: list[SavedMessage]
    client_ids: list[str]
    away: float = 0.0


def dump_mail(outbox: Outbox, client_ids: ClientIds, now: float) -> MailboxState:
    """
    Everything that is to be kept.

    @param now: by the clock of C{outbox}.
    """
    return MailboxState(
        outbox.epoch,
        outbox.next_number,
        now,
        [_saved(item, now) for item in outbox.held()],
        client_ids.dump(),
        max(0.0, outbox.away_until - now),
    )


def load_mail(state: MailboxState, outbox: Outbox, client_ids: ClientIds, now: float) -> bool:
    """
    Put what was kept into C{outbox} and C{client_ids}.  What ran out of time meanwhile is counted
    as expired.

    It goes ahead of what waits in C{outbox}, under its numbers, unless those of another epoch
    have been told or given already: then behind it, as if it were new.

    @return: whether that was so.
    """
    # The wall clock may have stepped back over the stop.
    elapsed = max(0.0, now - state.saved_at)
    messages = [_restored(saved, now + saved.remaining - elapsed) for saved in state.messages]
    client_ids.had_before(state.client_ids)
    if outbox.epoch or outbox.next_number > 1:
        for item in sorted(messages, key=lambda item: item.number or inf):
            outbox.put(item.reply, item.priority, item.expires_at - now)
        return True
    outbox.epoch = state.epoch
    outbox.restore(messages, state.next_number)
    if state.away > elapsed:
        outbox.stay_away(now + state.away - elapsed)
    return False


def _saved(item: Outgoing, now: float) -> SavedMessage:
    reply = item.reply
    saved = SavedMessage(
        sayable(reply.room),
        reply.channel_id,
        sayable(reply.bot_name),
        reply.event,
        item.priority,
        item.ttl,
        item.expires_at - now,
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


def _restored(saved: SavedMessage, expires_at: float) -> Outgoing:
    content: str | Media
    if saved.text is not None:
        content = saved.text
    else:
        content = Media(saved.files or saved.addresses, saved.kind, saved.format, saved.wait_ms)
    reply = Reply(saved.room, saved.channel_id, saved.bot_name, content, saved.event)
    return Outgoing(reply, saved.priority, reply.size, saved.ttl, expires_at, None, saved.number)
