"""
Session tokens in the store, as hashes.

There is one row for each device, so never more than two tokens of it; their rules are in
L{domaeka.policies.tokens}.  A token is valid only while the key is accepted by which it was
gained; the id of that key is kept with it.  So is a hash of the address to which it was issued:
from another one it counts only beside a signature.  While a connection holds a token its row is
leased: the sweep renews it, so that a server that dies leaves no token that lives for ever.

Tokens expire by the wall clock, for other servers share them: if it is set back, a token that no
connection holds lives longer by that; if it is set forward, it expires sooner: its device signs.
"""

from collections import deque
from collections.abc import Callable, Collection, Sequence
from typing import Final, NamedTuple

from sqlalchemy import Column, Connection, bindparam, func, select
from twisted.internet.defer import Deferred, fail, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from domaeka.errors import StoreError
from domaeka.interfaces import DeviceKey, Resumption
from domaeka.policies.auth import NO_KEY
from domaeka.policies.tokens import TokenPair, address_hash, new_token, token_hash
from domaeka.store.columns import (
    KEY,
    NAME,
    TIME,
    key_hash,
    milliseconds,
    table,
    upsert,
    write_each,
)
from domaeka.store.database import Database
from domaeka.store.threads import DelayedCall, Scheduler, expected

#: Most requests carried out in one transaction: those of a whole herd share one commit.
BATCH_REQUESTS: Final = 100
#: Most requests that wait; each is a connection's.
MAX_WAITING_REQUESTS: Final = 5000
#: Longest time that a phone waits for its token, in seconds; then it goes on without.
ANSWER_SECONDS: Final = 5.0
#: Interval at which leases are renewed and expired tokens removed, in seconds.
SWEEP_SECONDS: Final = 60.0
#: Sweeps that may fail before a lease is shorter than the lifetime.
_SPARE_SWEEPS: Final = 2

SESSIONS: Final = table(
    "sessions",
    Column("device_key", KEY, primary_key=True),
    Column("bot_name", NAME, nullable=False),
    Column("device_id", NAME, nullable=False),
    Column("newest_hash", KEY, nullable=False),
    Column("older_hash", KEY),
    Column("expires", TIME, nullable=False),
    Column("key_id", KEY, nullable=False, server_default=""),
    Column("address_hash", KEY),
)


class ResumeResult(NamedTuple):
    """See L{domaeka.interfaces.Resumption}."""

    token: str | None
    key_id: str = NO_KEY


class _Request(NamedTuple):
    """
    @ivar used: the hash of the token shown; L{None}: a signature held.
    @ivar fresh: the hash of the one to be given; L{None}: the connection that holds C{used} ended.
    @ivar address: the hash of the peer's address.
    @ivar key_id: of the key of a signature that held; L{None}: there was none.
    @ivar answer: the id of the key by which the token was gained; L{None}: it is not good.
    @ivar held: True if a connection of this server holds C{used}: it is good whatever its lease
        says, which a clock that is set forward ends too soon.
    """

    key: DeviceKey
    used: str | None
    fresh: str | None
    address: str | None
    key_id: str | None
    answer: "Deferred[str | None]"
    held: bool = False


class StoredSessions:
    """The session tokens (L{domaeka.interfaces.Sessions}), shared by all servers on one store."""

    _log = Logger()

    def __init__(
        self,
        database: Database,
        reactor: Scheduler,
        lifetime: float = 3600.0,
        accepted: Callable[[], Collection[str]] = lambda: (NO_KEY,),
        *,
        wall: Callable[[], float],
    ) -> None:
        """
        @param database: not started yet.
        @param lifetime: of a token, from the end of the connection that holds it, in seconds.
        @param accepted: the ids of the keys that are accepted now.
        @param wall: the wall clock, in seconds since 1970.
        """
        #: C{session.lifetime}; may be changed at any time.
        self.lifetime = lifetime
        self._accepted = accepted
        self._database = database
        self._reactor = reactor
        self._wall = wall
        self._waiting: deque[_Request] = deque()
        self._out: list[_Request] | None = None
        self._stuck = False
        self._deadline: DelayedCall | None = None
        self._held: dict[DeviceKey, str] = {}
        self._live = 0
        self._sweep_call: DelayedCall | None = None
        self._emptied: Deferred[None] | None = None
        self._stopped = False
        database.load_at_start(lambda c: _count(c, wall(), accepted()), self._loaded)

    # For connections

    def issue(self, key: DeviceKey, address: str, key_id: str) -> "Deferred[str]":
        """
        See L{domaeka.interfaces.Sessions}.  All older tokens of the device die.

        @return: fails with L{StoreError} within L{ANSWER_SECONDS} if the store does not answer.
        """
        token = new_token()
        return self._ask(key, None, token, address, key_id).addCallback(lambda _: token)

    def resume(
        self, token: object, key: DeviceKey, address: str, key_id: str | None = None
    ) -> "Deferred[Resumption]":
        """
        See L{domaeka.interfaces.Sessions}.

        @param key_id: of the key of a signature beside C{token}: the fresh token's from now on.
        @return: fails as L{issue} does.
        """
        used = token_hash(token)
        if used is None:
            return succeed(ResumeResult(None))
        fresh = new_token()
        return self._ask(key, used, fresh, address, key_id).addCallback(
            lambda by: ResumeResult(None) if by is None else ResumeResult(fresh, by)
        )

    def connection_ended(self, key: DeviceKey, token: str) -> None:
        """The connection of C{token} has ended, perhaps before it got it: its lifetime begins."""
        used = token_hash(token)
        if used is None:
            return
        if self._held.get(key) == used:
            del self._held[key]
        # If this is lost, the lease ends it a little later.
        self._submit(_Request(key, used, None, None, None, Deferred())).addErrback(expected)

    def live(self) -> int:
        """The number of good tokens, by the last sweep and what this server did since."""
        return self._live

    def stop(self) -> "Deferred[None]":
        """Store all that waits.  @return: fires in any case, soon after L{ANSWER_SECONDS}."""
        self._stopped = True
        if self._sweep_call is not None:
            self._sweep_call.cancel()
            self._sweep_call = None
        if self._out is None or self._stuck:
            return succeed(None)
        self._emptied = Deferred()
        return self._emptied

    # Requests that come while a transaction runs share the next one

    def _ask(
        self, key: DeviceKey, used: str | None, token: str, address: str, key_id: str | None
    ) -> "Deferred[str | None]":
        fresh = token_hash(token)
        assert fresh is not None
        held = used is not None and self._held.get(key) == used
        place = address_hash(address)
        return self._submit(_Request(key, used, fresh, place, key_id, Deferred(), held))

    def _submit(self, request: _Request) -> "Deferred[str | None]":
        if self._stuck or len(self._waiting) >= MAX_WAITING_REQUESTS:
            return fail(StoreError("the store does not answer"))
        self._waiting.append(request)
        if self._out is None:
            self._send()
        return request.answer

    def _send(self) -> None:
        waiting = self._waiting
        batch = [waiting.popleft() for _ in range(min(len(waiting), BATCH_REQUESTS))]
        self._out = batch
        now = self._wall()
        self._deadline = self._reactor.callLater(ANSWER_SECONDS, self._give_up)
        self._database.run_write(
            _carry_out, batch, now, self.lifetime, self._lease(), self._accepted()
        ).addCallbacks(
            self._carried_out, self._lost, callbackArgs=(batch,), errbackArgs=(batch,)
        ).addBoth(self._next)

    def _carried_out(
        self, outcome: tuple[list[str | StoreError | None], int], batch: list[_Request]
    ) -> None:
        results, change = outcome
        self._live = max(0, self._live + change)
        if self._stuck:
            return  # these requests have failed
        for request, key_id in zip(batch, results, strict=True):
            if isinstance(key_id, StoreError):
                request.answer.errback(key_id)
                continue
            if key_id is not None and request.fresh is not None:
                self._held[request.key] = request.fresh
            request.answer.callback(key_id)

    def _lost(self, failure: Failure, batch: list[_Request]) -> None:
        if not isinstance(failure.value, StoreError):
            self._log.failure("sessions: our own mistake", failure)
        if not self._stuck:
            self._refuse(batch, "the store could not be written")

    def _next(self, outcome: object) -> None:
        if isinstance(outcome, Failure):
            self._log.failure("sessions: our own mistake", outcome)
        self._out = None
        self._stuck = False
        if self._deadline is not None and self._deadline.active():
            self._deadline.cancel()
        self._deadline = None
        if self._waiting:
            self._send()
        else:
            self._empty()

    def _give_up(self) -> None:
        """The store is stuck: fail all requests until it is back."""
        self._stuck = True
        waiting, self._waiting = self._waiting, deque()
        self._refuse([*(self._out or ()), *waiting], "the store does not answer")
        self._empty()

    def _empty(self) -> None:
        emptied, self._emptied = self._emptied, None
        if emptied is not None:
            emptied.callback(None)

    def _refuse(self, requests: Sequence[_Request], reason: str) -> None:
        for request in requests:
            request.answer.errback(StoreError(reason))

    # The sweep

    def _period(self) -> float:
        return min(SWEEP_SECONDS, self.lifetime / 2)

    def _lease(self) -> float:
        return self.lifetime + _SPARE_SWEEPS * self._period()

    def _loaded(self, live: int) -> None:
        self._live = live
        if not self._stopped:
            self._sweep_call = self._reactor.callLater(self._period(), self._sweep)

    def _sweep(self) -> None:
        self._sweep_call = None
        now = self._wall()
        held = list(self._held.items())
        sweeping = self._database.run_write(
            _sweep, held, now, now + self._lease(), self._accepted()
        )
        sweeping.addCallback(self._loaded).addErrback(self._not_swept)

    def _not_swept(self, failure: Failure) -> None:
        if not isinstance(failure.value, StoreError):
            self._log.failure("sessions: our own mistake", failure)
        self._loaded(self._live)


def forget(connection: Connection, key: DeviceKey) -> None:
    """Remove the tokens of a device within a transaction."""
    connection.execute(SESSIONS.delete().where(SESSIONS.c.device_key == key_hash(*key)))


def _carry_out(
    connection: Connection,
    batch: list[_Request],
    now: float,
    lifetime: float,
    lease: float,
    accepted: Collection[str],
) -> tuple[list[str | StoreError | None], int]:
    """
    @return: for each request the id of the key behind it, if granted, or an error, if the database
        refused it; how many more tokens.
    """
    granted: list[str | StoreError | None] = [None] * len(batch)
    more = [0] * len(batch)
    hashes = [key_hash(*request.key) for request in batch]

    def carry_out(indices: Sequence[int]) -> None:
        rows = _Rows(connection, {hashes[index] for index in indices})
        for index in indices:
            granted[index], more[index] = rows.carry_out(
                batch[index], hashes[index], now, lifetime, lease, accepted
            )
        rows.write()

    # In the order of the rows, so that two servers never wait for each other; the requests of
    # one device stay in theirs.
    ordered = sorted(range(len(batch)), key=hashes.__getitem__)
    for index in write_each(connection, ordered, carry_out):
        granted[index], more[index] = StoreError("the store refused the device's names"), 0
    return granted, sum(more)


class _Row(NamedTuple):
    """The row of a device."""

    key: DeviceKey
    pair: TokenPair
    key_id: str
    address: str | None


class _Rows:
    """Rows of a transaction: read at once, changed here, and written at once."""

    def __init__(self, connection: Connection, hashes: Collection[str]) -> None:
        self._connection = connection
        # Locked in their order, too.
        found = connection.execute(
            select(SESSIONS)
            .where(SESSIONS.c.device_key.in_(hashes))
            .order_by(SESSIONS.c.device_key)
            .with_for_update()
        )
        self._rows: dict[str, _Row | None] = {
            row.device_key: _Row(
                DeviceKey(row.bot_name, row.device_id),
                TokenPair(row.newest_hash, row.older_hash, row.expires / 1000),
                row.key_id,
                row.address_hash,
            )
            for row in found
        }
        self._before = dict(self._rows)

    def carry_out(
        self,
        request: _Request,
        device_key: str,
        now: float,
        lifetime: float,
        lease: float,
        accepted: Collection[str],
    ) -> tuple[str | None, int]:
        """@return: the id of the key behind a request, if granted; how many more tokens."""
        row = self._rows.get(device_key)
        if request.fresh is None:
            if row is not None and row.pair.newest == request.used:
                ends = row.pair._replace(expires=now + lifetime)
                self._rows[device_key] = row._replace(pair=ends)
            return None, 0
        key_id = request.key_id
        if request.used is None:
            after = TokenPair(request.fresh, None, now + lease)
        elif row is None or not row.pair.is_good(request.used, 0.0 if request.held else now):
            return None, 0
        elif key_id is None and row.address != request.address:
            return None, 0  # as if it had not been shown: somebody may have seen it
        elif row.key_id not in accepted:
            self._rows[device_key] = None
            return None, 0
        else:
            after = row.pair.after(request.used, request.fresh, now + lease)
            key_id = row.key_id if key_id is None else key_id
        assert key_id is not None
        self._rows[device_key] = _Row(request.key, after, key_id, request.address)
        return key_id, after.size - (0 if row is None else row.pair.size)

    def write(self) -> None:
        """Write what has changed."""
        changed = {k: row for k, row in self._rows.items() if row is not self._before.get(k)}
        values = [
            {
                "device_key": device_key,
                "bot_name": row.key.bot_name,
                "device_id": row.key.device_id,
                "newest_hash": row.pair.newest,
                "older_hash": row.pair.older,
                "expires": milliseconds(row.pair.expires),
                "key_id": row.key_id,
                "address_hash": row.address,
            }
            for device_key, row in changed.items()
            if row is not None
        ]
        if values:
            upsert(self._connection, SESSIONS, values, fixed=("bot_name", "device_id"))
        dead = [device_key for device_key, row in changed.items() if row is None]
        if dead:
            self._connection.execute(SESSIONS.delete().where(SESSIONS.c.device_key.in_(dead)))


def _sweep(
    connection: Connection,
    held: list[tuple[DeviceKey, str]],
    now: float,
    lease_ends: float,
    accepted: Collection[str],
) -> int:
    """
    Renew leases and remove expired tokens; those of a key that is not accepted stay until then, for
    another server may accept it.

    @return: how many tokens are good.
    """
    if held:
        leases = [
            {"row_key": key_hash(*key), "held": newest, "until": milliseconds(lease_ends)}
            for key, newest in held
        ]
        connection.execute(
            SESSIONS.update()
            .where(SESSIONS.c.device_key == bindparam("row_key"))
            .where(SESSIONS.c.newest_hash == bindparam("held"))
            .values(expires=bindparam("until")),
            sorted(leases, key=lambda lease: str(lease["row_key"])),
        )
    connection.execute(SESSIONS.delete().where(SESSIONS.c.expires <= milliseconds(now)))
    return _count(connection, now, accepted)


def _count(connection: Connection, now: float, accepted: Collection[str]) -> int:
    newest, older = connection.execute(
        select(func.count(SESSIONS.c.newest_hash), func.count(SESSIONS.c.older_hash)).where(
            SESSIONS.c.expires > milliseconds(now), SESSIONS.c.key_id.in_(accepted)
        )
    ).one()
    return int(newest + older)
