"""
Chat that came before the store was read: nobody knows yet whom an operator has refused.

It is held, in bounded memory, and answered once the store has been read.
"""

from collections import deque
from collections.abc import Callable
from typing import Final

from twisted.logger import Logger

from domaeka.interfaces import DeviceKey

#: Most messages that are held, and most characters of them: of all devices together.
MAX_HELD: Final = 10_000
MAX_HELD_CHARS: Final = 8_000_000
#: Messages that are answered in one turn of the reactor, so that it takes some 10 ms.
RELEASED_A_TURN: Final = 100


class _Share:
    """The part of a device, or of one of its rooms."""

    __slots__ = ("chars", "messages")

    def __init__(self) -> None:
        self.messages = 0
        self.chars = 0


class HeldChat:
    """
    Messages that wait for the store, oldest first.

    A device may take half of the room that is left to all, and a room half of what is left to its
    device, so that none keeps the others out.

    @ivar holding: whether messages are to be held.
    """

    log = Logger()

    def __init__(
        self,
        observe_dropped: Callable[[int], object] = lambda messages: None,
        gave_way: Callable[[object], object] = lambda claimant: None,
    ) -> None:
        """
        @param observe_dropped: called with each number of messages that are dropped.
        @param gave_way: called with whose message there was no room for.
        """
        self.holding = False
        self._observe_dropped = observe_dropped
        self._gave_way = gave_way
        self._messages: deque[tuple[DeviceKey, str, int, Callable[[bool], object]]] = deque()
        self._chars = 0
        self._shares: dict[DeviceKey | tuple[DeviceKey, str], _Share] = {}
        self._dropped = 0

    def __len__(self) -> int:
        return len(self._messages)

    def begin(self) -> None:
        """Hold what comes from now on."""
        self.holding = True

    def has_room(self, key: DeviceKey, room_id: str, chars: int) -> bool:
        """True if a message of C{chars} characters can be held for a room of a device."""
        left, left_chars = MAX_HELD - len(self._messages), MAX_HELD_CHARS - self._chars
        for holder in (key, (key, room_id)):
            share = self._shares.get(holder)
            if share is not None:
                left -= share.messages
                left_chars -= share.chars
            if left <= 0 or chars > left_chars:
                return False
        return True

    def put(
        self, key: DeviceKey, room_id: str, chars: int, decide: Callable[[bool], object]
    ) -> bool:
        """
        Hold a message of a room of a device.

        @param decide: called once: with C{True} when it is to be judged and answered, with
            C{False} when it is dropped after all.
        @return: whether there was room; if not, it is counted as dropped.
        """
        if not self.has_room(key, room_id, chars):
            self._drop(1)
            self._gave_way(f"{key}, room {room_id!r}")
            return False
        self._messages.append((key, room_id, chars, decide))
        for holder in (key, (key, room_id)):
            share = self._shares.setdefault(holder, _Share())
            share.messages += 1
            share.chars += chars
        self._chars += chars
        return True

    def _drop(self, messages: int) -> None:
        if not self._dropped:
            self.log.warn(
                "the store has not been read yet, and {count} messages wait for it: of those that "
                "come now, some are dropped",
                count=len(self._messages),
            )
        self._dropped += messages
        self._observe_dropped(messages)

    def _take(self) -> Callable[[bool], object]:
        key, room_id, chars, decide = self._messages.popleft()
        for holder in (key, (key, room_id)):
            share = self._shares[holder]
            share.messages -= 1
            share.chars -= chars
            if not share.messages:
                del self._shares[holder]
        self._chars -= chars
        return decide

    def release(self, call_soon: Callable[[Callable[[], object]], object]) -> None:
        """
        Have all be answered, some in each turn of the reactor, and hold no more behind them.

        @param call_soon: calls a function in another turn.
        """
        for _ in range(min(RELEASED_A_TURN, len(self._messages))):
            try:
                self._take()(True)
            except Exception:
                self.log.failure("a message that waited for the store: our own mistake")
        if self._messages:
            call_soon(lambda: self.release(call_soon))
            return
        self.holding = False
        if self._dropped:
            self.log.warn(
                "{lost} messages were dropped before the store was read", lost=self._dropped
            )
            self._dropped = 0

    def give_up(self) -> None:
        """Drop all: the server stops, and cannot answer them."""
        lost = len(self._messages)
        if not lost:
            return
        self.log.warn("the store has not been read: {lost} messages are not answered", lost=lost)
        self._observe_dropped(lost)
        while self._messages:
            self._take()(False)
