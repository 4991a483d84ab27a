"""
Durable delivery: what a client's message became is in the store before the client hears of it.

One L{Batch} is being stored at a time, while the next one gathers.  The acknowledgement of a
message, and a numbered answer, leave once the batch that they stand in is stored.  While the store
fails, acknowledgements wait, and answers go out without a number.
"""

from collections import deque
from collections.abc import Callable
from typing import Any, Final

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from domaeka.errors import StoreError
from domaeka.policies.records import Batch, Records

#: Longest time that a commit may take until the store counts as failing, in seconds.
COMMIT_SECONDS: Final = 2.0
#: Time that a change for which nobody waits gathers others, in seconds.
GATHER_SECONDS: Final = 0.1
#: Pause before a batch that was not stored is stored again, in seconds.
RETRY_SECONDS: Final = 1.0

_log: Final = Logger()


class Journal:
    """
    Bring the changes of all records into the store, batch by batch.

    @ivar enabled: whether devices are to have records; if not, those that are there are removed.
    @ivar stored: number of the last batch that is stored; C{gathering}: of the one that gathers.
    """

    def __init__(
        self,
        store: Callable[[Batch], "Deferred[None] | None"],
        call_later: Callable[[float, Callable[[], object]], Any],
        seconds: Callable[[], float],
        wall: Callable[[], float],
        observe: Callable[[float, int], object] = lambda seconds, messages: None,
        enabled: bool = True,
    ) -> None:
        """
        @param store: stores a batch, which may be given again; fails with L{StoreError}; returns
            L{None} if it is stored already.
        @param observe: called with the time that a batch took, in seconds, and its messages.
        @param seconds: the time now, in seconds.
        @param wall: the wall clock, in seconds since 1970.
        """
        self._store = store
        self._call_later = call_later
        self.seconds = seconds
        self._observe = observe
        self.enabled = enabled
        self.wall = wall
        self.stored = 0
        self.gathering = 1
        self._dirty: dict[Records, None] = {}
        self._forgotten: list[int] = []
        self._in_flight: Batch | None = None
        self._began_at = 0.0
        self._trouble: str | None = None
        self._waiting: deque[tuple[int, Callable[[bool], object]]] = deque()
        self._patient: deque[tuple[int, Callable[[], object]]] = deque()
        self._gather_call: Any | None = None
        self._hurries = False  # a commit comes in the next turn
        self._late_call: Any | None = None
        self._retry_call: Any | None = None
        self._emptied: Deferred[None] | None = None

    # From records

    def touch(self, records: "Records") -> None:
        """Note that C{records} have changed, for the first time since they were collected."""
        self._dirty[records] = None
        self._gather()

    def forget(self, records: "Records") -> None:
        """Keep nothing of C{records}."""
        self._dirty.pop(records, None)
        self._forgotten.append(records.outbox)
        self._gather()

    # From connections

    def after(self, number: int, call: Callable[[bool], object]) -> None:
        """
        Call C{call} with C{True} once the batch C{number} is stored, perhaps before this returns;
        with C{False} as soon as the store fails.
        """
        if number <= self.stored or self._trouble is not None:
            call(number <= self.stored)
            return
        self._waiting.append((number, call))
        self._hurry()

    def once_stored(self, number: int, call: Callable[[], object]) -> None:
        """Call C{call} once the batch C{number} is stored, however long that takes."""
        if number <= self.stored:
            call()
        else:
            self._patient.append((number, call))
            self._commit()

    @property
    def fails(self) -> bool:
        """True while the store fails."""
        return self._trouble is not None

    @property
    def held(self) -> int:
        """The number of connections that wait for the store."""
        return len(self._waiting) + len(self._patient)

    def health(self) -> str | None:
        """L{None} when well, else the fault."""
        if self._trouble is None:
            return None
        return f"acknowledgements wait for the store: {self._trouble}"

    # Batches

    # A timer that is there is left alone: to move or to cancel one costs more than a look.

    def _gather(self) -> None:
        """Commit within L{GATHER_SECONDS}."""
        if self._gather_call is None:
            self._gather_call = self._call_later(GATHER_SECONDS, self._gathered)

    def _gathered(self) -> None:
        self._gather_call = None
        self._commit()

    def _hurry(self) -> None:
        """Commit behind all that this turn of the reactor reads."""
        if not self._hurries and self._in_flight is None:
            self._hurries = True
            self._call_later(0.0, self._hurried)

    def _hurried(self) -> None:
        self._hurries = False
        self._commit()

    def _commit(self) -> None:
        if self._in_flight is not None or not (self._dirty or self._forgotten):
            return
        batch = self._in_flight = Batch()
        dirty, self._dirty = self._dirty, {}
        for records in dirty:
            records.collect(batch)
        batch.forgotten, self._forgotten = self._forgotten, []
        self.gathering += 1
        self._send()

    def _send(self) -> None:
        assert self._in_flight is not None
        self._began_at = self.seconds()
        stored = self._store(self._in_flight)
        if stored is None:
            self._was_stored(None)
            return
        if self._late_call is None:
            self._late_call = self._call_later(COMMIT_SECONDS, self._look)
        stored.addCallbacks(self._was_stored, self._was_lost).addErrback(
            lambda failure: _log.failure("durable delivery: our own mistake", failure)
        )

    def _look(self) -> None:
        """Is the commit late?"""
        self._late_call = None
        if self._in_flight is None or self._retry_call is not None:
            return
        left = self._began_at + COMMIT_SECONDS - self.seconds()
        if left > 0.0:
            self._late_call = self._call_later(left, self._look)
        else:
            self._fails(f"it has not answered for {COMMIT_SECONDS:.0f} s")

    def _fails(self, why: str) -> None:
        if self._trouble is None:
            _log.warn(
                "durable delivery: the store fails: {reason}: acknowledgements wait, answers go "
                "out without a number",
                reason=why,
            )
        self._trouble = why
        waiting, self._waiting = self._waiting, deque()
        for _, call in waiting:
            call(False)

    def _was_stored(self, _: object) -> None:
        batch, self._in_flight = self._in_flight, None
        assert batch is not None
        messages = len(batch.messages) + len(batch.taken)
        self._observe(self.seconds() - self._began_at, messages)
        self.stored = self.gathering - 1
        if self._trouble is not None:
            self._trouble = None
            _log.info("durable delivery: the store is back")
        while self._patient and self._patient[0][0] <= self.stored:
            self._patient.popleft()[1]()
        while self._waiting and self._waiting[0][0] <= self.stored:
            self._waiting.popleft()[1](True)
        if self._waiting or self._patient or self._emptied is not None:
            self._commit()
        elif self._dirty or self._forgotten:
            self._gather()
        self._empty()

    def _was_lost(self, failure: Failure) -> None:
        if not isinstance(failure.value, StoreError):
            _log.failure("durable delivery: our own mistake", failure)
        self._fails(failure.getErrorMessage())
        self._retry_call = self._call_later(RETRY_SECONDS, self._retry)

    def _retry(self) -> None:
        self._retry_call = None
        self._send()

    # The end

    def flush(self) -> "Deferred[None]":
        """Store all changes so far.  @return: fires once they are stored; may be cancelled."""
        emptied = self._emptied = Deferred(lambda _: self._give_up())
        self._commit()
        self._empty()
        return emptied

    def _empty(self) -> None:
        if self._emptied is not None and not (self._in_flight or self._dirty or self._forgotten):
            emptied, self._emptied = self._emptied, None
            self._give_up()
            emptied.callback(None)

    def _give_up(self) -> None:
        self._emptied = None
        for call in (self._retry_call, self._gather_call, self._late_call):
            if call is not None:
                call.cancel()
        self._retry_call = self._gather_call = self._late_call = None
