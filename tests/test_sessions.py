"""Tests for L{domaeka.store.sessions}."""

from typing import Any

from sqlalchemy import event
from twisted.internet.defer import Deferred, gatherResults

from domaeka.errors import StoreError
from domaeka.interfaces import DeviceKey
from domaeka.policies.auth import NO_KEY
from domaeka.policies.tokens import new_token
from domaeka.store.database import Database
from domaeka.store.sessions import (
    ANSWER_SECONDS,
    BATCH_REQUESTS,
    MAX_WAITING_REQUESTS,
    SESSIONS,
    SWEEP_SECONDS,
    StoredSessions,
)
from tests.storing import StoreTestCase

#: Of the phones.
ADDRESS = "192.0.2.1"
PHONE = DeviceKey("봇", "a1")
OTHER = DeviceKey("봇", "a2")
LIFETIME = 3600.0


class SessionsTestCase(StoreTestCase):
    """Has sessions on an open store."""

    def setUp(self) -> None:
        super().setUp()
        self.accepted = ["old", "new", NO_KEY]
        self.sessions = self.sibling()
        self.start()

    def issue(self, key: DeviceKey = PHONE) -> str:
        """A device proved itself by a signature."""
        return self.successResultOf(self.sessions.issue(key, ADDRESS, NO_KEY))

    def gain(self, key_id: str, key: DeviceKey = PHONE) -> str:
        """A device proved itself by one of several keys."""
        return self.successResultOf(self.sessions.issue(key, ADDRESS, key_id))

    def resume(self, token: object, key: DeviceKey = PHONE) -> str | None:
        """A device showed a token."""
        return self.successResultOf(self.sessions.resume(token, key, ADDRESS)).token

    def use(self, token: str) -> str:
        """A device showed a good token."""
        fresh = self.resume(token)
        assert fresh is not None
        return fresh

    def sibling(self) -> StoredSessions:
        """Those of another server on the same store, or of this one after a restart."""
        return StoredSessions(
            self.database, self.clock, LIFETIME, lambda: self.accepted, wall=self.wall
        )


class RuleTests(SessionsTestCase):
    """Tests for which tokens are good."""

    def test_another_address(self) -> None:
        """From elsewhere a token counts only beside a signature; that of before has no address."""
        token = self.issue()
        for there in ("192.0.2.2", "2001:db8::1", "local"):
            shown = self.successResultOf(self.sessions.resume(token, PHONE, there))
            self.assertIsNone(shown.token, there)
            sibling = self.successResultOf(self.sibling().resume(token, PHONE, there))
            self.assertIsNone(sibling.token, there)
        fresh = self.successResultOf(self.sessions.resume(token, PHONE, "192.0.2.2", NO_KEY)).token
        self.assertIsNone(self.resume(fresh))  # it is of the new address now
        again = self.successResultOf(self.sessions.resume(fresh, PHONE, "192.0.2.2")).token
        self.assertIsNotNone(again)

    def test_same_network(self) -> None:
        """Of IPv6 the /64 is what counts: phones change the rest by themselves."""
        token = self.successResultOf(self.sessions.issue(PHONE, "2001:db8::1", NO_KEY))
        other = self.successResultOf(self.sessions.resume(token, PHONE, "2001:db8:0:1::1"))
        self.assertIsNone(other.token)
        same = self.successResultOf(self.sessions.resume(token, PHONE, "2001:db8::ffff:1"))
        self.assertIsNotNone(same.token)

    def test_token_is_good_for_a_fresh_one(self) -> None:
        """Each use brings a new token, and the one used stays good: the answer may be lost."""
        first = self.issue()
        second = self.use(first)
        self.assertEqual(len({first, second, self.use(first)}), 3)

    def test_only_the_newest_and_the_one_used_are_good(self) -> None:
        """Once a token is used, all but it and what it brought are dead."""
        first = self.issue()
        lost = self.use(first)
        second = self.use(first)
        self.assertIsNone(self.resume(lost))
        third = self.use(second)
        self.assertIsNone(self.resume(first))
        self.use(third)

    def test_signature_ends_older_tokens(self) -> None:
        """A device that proves itself anew starts anew."""
        first = self.issue()
        second = self.use(first)
        self.issue()
        self.assertIsNone(self.resume(first))
        self.assertIsNone(self.resume(second))

    def test_belongs_to_its_device(self) -> None:
        """A token is worth nothing under another name, and is not harmed by the attempt."""
        token = self.issue()
        self.issue(OTHER)
        for key in (OTHER, DeviceKey("봇", "A1"), DeviceKey("봇a1", "")):
            self.assertIsNone(self.resume(token, key))
        self.use(token)

    def test_anything_may_be_shown(self) -> None:
        """What is no token is not valid, whatever its type, and costs the store nothing."""
        self.issue()
        writes = len(self.write_times)
        texts = ["", "x" * 42, "x" * 1_000_000, "é" * 43]
        shown: list[object] = [None, 0, 1.5, True, [], {}, b"x", *texts]
        for token in shown:
            self.assertIsNone(self.resume(token))
        self.assertEqual(len(self.write_times), writes)

    def test_guessing_leaves_nothing(self) -> None:
        """However many tokens are guessed, no row is made and no device harmed."""
        token = self.issue()
        for _ in range(100):
            self.assertIsNone(self.resume(new_token()))
            self.assertIsNone(self.resume(new_token(), OTHER))
        self.assertEqual(len(self.rows(SESSIONS)), 1)
        self.use(token)

    def test_dies_with_its_key(self) -> None:
        """A token is worth nothing, for good, once the key by which it was gained is not."""
        old, new = self.gain("old"), self.gain("new", OTHER)
        old = self.use(old)
        self.accepted.remove("old")
        self.assertIsNone(self.resume(old))
        self.assertEqual([row["key_id"] for row in self.rows(SESSIONS)], ["new"])
        self.accepted.append("old")
        self.assertIsNone(self.resume(old))
        self.assertIsNotNone(self.resume(new, OTHER))

    def test_takes_the_key_of_a_signature(self) -> None:
        """A token used beside a signature belongs to the key of that from then on."""
        result = self.successResultOf(self.sessions.resume(self.gain("old"), PHONE, ADDRESS, "new"))
        self.accepted.remove("old")
        self.assertEqual(result.key_id, "new")
        self.assertIsNotNone(self.resume(result.token))

    def test_only_those_of_accepted_keys_are_counted(self) -> None:
        """Tokens of a key that is accepted no more are not live, and may be at another server."""
        token = self.gain("old")
        self.accepted.remove("old")
        self.clock.advance(SWEEP_SECONDS)
        self.assertEqual(self.sessions.live(), 0)
        self.accepted.append("old")
        self.use(token)

    def test_nothing_readable_is_stored(self) -> None:
        """Whoever reads the store learns no token."""
        first = self.issue()
        second = self.use(first)
        stored = repr(self.rows(SESSIONS))
        self.assertNotIn(first, stored)
        self.assertNotIn(second, stored)

    def test_shared_by_servers(self) -> None:
        """A token is good on another server of the same store, and dead here afterwards."""
        first = self.issue()
        second = self.use(first)
        third = self.successResultOf(self.sibling().resume(second, PHONE, ADDRESS)).token
        assert third is not None
        self.assertIsNone(self.resume(first))
        self.use(third)


class LifetimeTests(SessionsTestCase):
    """Tests for how long tokens live."""

    def test_counts_from_the_end_of_the_connection(self) -> None:
        """However long a connection lasts, its token is good for an hour after it."""
        token = self.issue()
        self.clock.pump([SWEEP_SECONDS] * 200)
        self.sessions.connection_ended(PHONE, token)
        self.clock.pump([SWEEP_SECONDS] * 59)
        token = self.use(token)
        self.sessions.connection_ended(PHONE, token)
        self.clock.pump([SWEEP_SECONDS] * 60)
        self.assertIsNone(self.resume(token))

    def test_late_end_of_an_older_connection_changes_nothing(self) -> None:
        """The end of the connection that was replaced does not start the clock of its successor."""
        first = self.issue()
        second = self.use(first)
        self.sessions.connection_ended(PHONE, first)
        self.clock.pump([SWEEP_SECONDS] * 120)
        self.use(second)

    def test_dead_server_leaves_no_token_for_ever(self) -> None:
        """Where a server dies with its connections open, their tokens end soon after an hour."""
        token = self.issue()
        self.sessions.stop()
        self.clock.advance(LIFETIME - 1)
        sibling = self.sibling()
        self.assertIsNotNone(self.successResultOf(sibling.resume(token, PHONE, ADDRESS)).token)
        self.clock.advance(LIFETIME + 2 * SWEEP_SECONDS)
        self.assertIsNone(self.successResultOf(sibling.resume(token, PHONE, ADDRESS)).token)

    def test_clock_is_set(self) -> None:
        """A token that a connection holds outlives any step; others end at their date."""
        for step in (-32_400.0, -3600.0, 86_400.0):
            for passed in (0.0, SWEEP_SECONDS):
                token = self.issue()
                self.wall.step(step)
                self.clock.advance(passed)
                self.use(token)
        token = self.issue()
        self.sessions.connection_ended(PHONE, token)
        self.wall.step(-3600.0)
        self.clock.pump([SWEEP_SECONDS] * 70)
        token = self.use(token)  # it lives longer by the step
        self.sessions.connection_ended(PHONE, token)
        self.wall.step(86_400.0)
        self.assertIsNone(self.resume(token))

    def test_dead_tokens_are_removed(self) -> None:
        """The sweep removes what has ended, and the count follows."""
        first = self.issue()
        self.issue(OTHER)
        second = self.use(first)
        self.assertEqual(self.sessions.live(), 3)
        self.sessions.connection_ended(PHONE, second)
        self.clock.pump([SWEEP_SECONDS] * 61)
        self.assertEqual([row["device_id"] for row in self.rows(SESSIONS)], ["a2"])
        self.assertEqual(self.sessions.live(), 1)

    def test_sweep_outlives_failures(self) -> None:
        """A store that fails for a while ends no session of an open connection."""
        token = self.issue()
        self.break_store()
        self.clock.advance(SWEEP_SECONDS)
        self.break_store(False)
        self.clock.pump([SWEEP_SECONDS] * 100)
        self.use(token)


class BatchTests(SessionsTestCase):
    """Tests for how requests reach the store."""

    def statements(self, count: int) -> int:
        """The number of statements in which as many devices are given their tokens."""
        seen: list[object] = []
        engine = self.database._writes
        note = lambda *args: seen.append(args[2])  # noqa: E731
        event.listen(engine, "before_cursor_execute", note)
        self.thread.stuck = True
        keys = [DeviceKey("봇", f"{count}-{number}") for number in range(count + 1)]
        issued = gatherResults([self.sessions.issue(key, ADDRESS, NO_KEY) for key in keys])
        self.thread.go_on()
        tokens = self.successResultOf(issued)
        event.remove(engine, "before_cursor_execute", note)
        self.assertEqual(len(set(tokens)), count + 1)
        return len(seen)

    def test_statements(self) -> None:
        """A whole batch takes as many statements as a small one."""
        self.assertEqual(self.statements(BATCH_REQUESTS), self.statements(3))

    def test_order(self) -> None:
        """Requests of one device are carried out in their order, each on what the last left."""
        first = self.issue()
        self.thread.stuck = True
        self.sessions.issue(
            OTHER, ADDRESS, NO_KEY
        )  # is under way: those that follow share the next one
        asked: list[Deferred[Any]] = [
            self.sessions.resume(first, PHONE, ADDRESS),
            self.sessions.issue(PHONE, ADDRESS, NO_KEY),
            self.sessions.resume(first, PHONE, ADDRESS),
        ]
        self.thread.go_on()
        resumed, issued, late = self.successResultOf(gatherResults(asked))
        self.assertIsNotNone(resumed.token)
        self.assertIsNone(late.token)
        self.assertIsNone(self.resume(resumed.token))
        self.use(issued)

    def test_requests_that_come_together_share_a_transaction(self) -> None:
        """A hundred phones that come back at once cost two commits."""
        keys = [DeviceKey("bot", str(number)) for number in range(100)]
        tokens = [self.issue(key) for key in keys]
        self.thread.stuck = True
        writes = len(self.write_times)
        resuming = gatherResults(
            [
                self.sessions.resume(token, key, ADDRESS)
                for token, key in zip(tokens, keys, strict=True)
            ]
        )
        self.thread.go_on()
        fresh = {result.token for result in self.successResultOf(resuming)}
        self.assertEqual((len(fresh), None in fresh), (100, False))
        self.assertEqual(len(self.write_times) - writes, 2)

    def test_answer_waits_for_the_store(self) -> None:
        """No token leaves before it is stored."""
        self.thread.stuck = True
        issuing = self.sessions.issue(PHONE, ADDRESS, NO_KEY)
        self.clock.advance(1.0)
        self.assertNoResult(issuing)
        self.thread.go_on()
        token = self.successResultOf(issuing)
        self.use(token)

    def test_failing_store_is_told(self) -> None:
        """Where nothing can be stored the asker hears it, and a later one is served."""
        self.break_store()
        self.failureResultOf(self.sessions.issue(PHONE, ADDRESS, NO_KEY), StoreError)
        self.failureResultOf(self.sessions.resume(new_token(), PHONE, ADDRESS), StoreError)
        self.break_store(False)
        self.issue()

    def test_stuck_store_holds_nobody(self) -> None:
        """A store that does not answer in time is not waited for until it is back."""
        token = self.issue()
        self.thread.stuck = True
        first = self.sessions.resume(token, PHONE, ADDRESS)
        second = self.sessions.issue(OTHER, ADDRESS, NO_KEY)
        self.clock.advance(ANSWER_SECONDS)
        self.failureResultOf(first, StoreError)
        self.failureResultOf(second, StoreError)
        self.failureResultOf(self.sessions.issue(OTHER, ADDRESS, NO_KEY), StoreError)
        self.thread.go_on()
        self.use(token)

    def test_waiting_is_bounded(self) -> None:
        """Beyond a bound requests are refused at once."""
        self.thread.stuck = True
        self.sessions.issue(PHONE, ADDRESS, NO_KEY).addErrback(lambda failure: None)
        token = new_token()
        for _ in range(MAX_WAITING_REQUESTS):
            self.sessions.connection_ended(PHONE, token)
        self.failureResultOf(self.sessions.issue(PHONE, ADDRESS, NO_KEY), StoreError)

    def test_stop_stores_what_waits(self) -> None:
        """Connections that end with the server leave tokens that end in time."""
        token = self.issue()
        self.thread.stuck = True
        self.sessions.connection_ended(PHONE, token)
        stopping = self.sessions.stop()
        self.assertNoResult(stopping)
        self.thread.go_on()
        self.successResultOf(stopping)
        (row,) = self.rows(SESSIONS)
        self.assertEqual(row["expires"], round((self.wall() + LIFETIME) * 1000))
        self.stopped(self.sessions)

    def test_not_open(self) -> None:
        """Before the store is open a phone is told at once, and goes on without."""
        database: Database = self.make_database()
        sessions = StoredSessions(database, self.clock, wall=self.wall)
        self.failureResultOf(sessions.issue(PHONE, ADDRESS, NO_KEY), StoreError)
