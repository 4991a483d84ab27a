"""Tests for L{domaeka.store.roles}: two servers on one store."""

from domaeka.errors import StoreError
from domaeka.store import decisions
from domaeka.store import roles as module
from domaeka.store.decisions import POLL_SECONDS, DecisionFeed
from domaeka.store.roles import ROLES, HeldRole, StoredRoles
from tests.storing import StoreTestCase

CLERK = HeldRole("총무", "18398338829933617", "1a2b")
OTHER = HeldRole("총무", "18398338829933617", "1A2B")


class StoredRolesTests(StoreTestCase):
    """Tests for L{StoredRoles}."""

    def setUp(self) -> None:
        super().setUp()
        self.here, self.there = self.node("a"), self.node("b")
        self.start()

    def node(self, name: str) -> StoredRoles:
        """One more server on the store."""
        feed = DecisionFeed(self.database, self.clock, name)
        roles = StoredRoles(self.database, name, wall=self.wall)
        roles.watch(feed)
        return roles

    def grant(self, held: HeldRole = CLERK) -> float | None:
        """Have somebody hold a role.  @return: since when."""
        since: float | None = self.successResultOf(self.here.grant(held))
        return since

    def test_held(self) -> None:
        """A role is held by one person, in one channel, under one name, until it is taken."""
        self.assertEqual(self.grant(), self.wall())
        self.assertTrue(self.here.holds(*CLERK))
        for role, channel_id, user_hash in (
            OTHER,
            ("총무님", *CLERK[1:]),
            (CLERK.role, "1839833882993361", "71a2b"),
            (CLERK.role, None, CLERK.user_hash),
            (CLERK.role, CLERK.channel_id, None),
        ):
            self.assertFalse(self.here.holds(role, channel_id, user_hash))
        self.assertTrue(self.successResultOf(self.here.withdraw(CLERK)))
        self.assertFalse(self.here.holds(*CLERK))
        self.assertFalse(self.successResultOf(self.here.withdraw(CLERK)))

    def test_since(self) -> None:
        """Who is given a role again holds it since the first time."""
        first = self.grant()
        self.clock.advance(60.0)
        self.assertEqual(self.grant(), first)
        self.assertNotEqual(self.grant(OTHER), first)
        self.assertEqual(len(self.rows(ROLES)), 2)

    def test_restart(self) -> None:
        """A server that starts knows who holds a role; before the store is open, nobody does."""
        since = self.grant()
        again = StoredRoles(self.database, "a", wall=self.wall)
        self.assertFalse(again.holds(*CLERK))
        self.successResultOf(self.database.start())  # it reads what the first start has read
        self.assertEqual(again.held(), {CLERK: since})

    def test_another_server(self) -> None:
        """What one server's operator decides is in force at the other soon after."""
        since = self.grant()
        self.grant(OTHER)
        self.assertFalse(self.there.holds(*CLERK))
        self.clock.advance(POLL_SECONDS)
        self.assertEqual(self.there.held()[CLERK], since)
        self.successResultOf(self.here.withdraw(CLERK))
        self.clock.advance(POLL_SECONDS)
        self.assertEqual(list(self.there.held()), [OTHER])

    def test_too_many_were_missed(self) -> None:
        """A server that could not ask for long reads all of them, and forgets those taken."""
        self.patch(decisions, "KEPT_DECISIONS", 3)
        self.grant()
        self.clock.advance(POLL_SECONDS)
        self.successResultOf(self.here.withdraw(CLERK))
        others = [HeldRole("역할", str(number), "h") for number in range(6)]
        for held in others:
            self.grant(held)
        self.clock.advance(POLL_SECONDS)
        self.assertEqual(set(self.there.held()), set(others))

    def test_taken_at_another_server(self) -> None:
        """A role that the other server has taken meanwhile is given anew, and taken once."""
        self.grant()
        self.clock.advance(POLL_SECONDS)
        self.assertTrue(self.successResultOf(self.there.withdraw(CLERK)))
        self.assertTrue(self.successResultOf(self.here.withdraw(CLERK)))  # held here until now
        self.assertTrue(self.grant())
        self.clock.advance(POLL_SECONDS)
        self.assertTrue(self.there.holds(*CLERK))

    def test_no_room(self) -> None:
        """No more are stored than there is room for, counted over both servers."""
        self.patch(module, "MAX_ROLES", 2)
        self.grant()
        self.successResultOf(self.there.grant(OTHER))
        third = HeldRole("역할", "1", "h")
        self.assertIsNone(self.grant(third))
        self.assertFalse(self.here.holds(*third))
        self.assertIsNotNone(self.grant())  # it is there
        self.successResultOf(self.here.withdraw(OTHER))
        self.assertIsNotNone(self.grant(third))

    def test_store_fails(self) -> None:
        """What could not be stored is not in force: neither a role, nor its end."""
        self.grant()
        self.break_store()
        self.failureResultOf(self.here.grant(OTHER), StoreError)
        self.failureResultOf(self.here.withdraw(CLERK), StoreError)
        self.assertEqual(list(self.here.held()), [CLERK])

    def test_refused(self) -> None:
        """What no phone can send, and what is no name, is refused: the field is named."""
        for field, held in (
            ("role", HeldRole("", "1", "h")),
            ("role", HeldRole(" 총무", "1", "h")),
            ("role", HeldRole("총\n무", "1", "h")),
            ("role", HeldRole("\ud800", "1", "h")),
            ("role", HeldRole("x" * 129, "1", "h")),
            ("channel_id", HeldRole("총무", "우리방", "h")),
            ("channel_id", HeldRole("총무", "", "h")),
            ("channel_id", HeldRole("총무", "1" * 129, "h")),
            ("channel_id", HeldRole("총무", "１", "h")),
            ("user_hash", HeldRole("총무", "1", "")),
            ("user_hash", HeldRole("총무", "1", "h\0")),
            ("user_hash", HeldRole("총무", "1", "x" * 129)),
        ):
            error = str(self.assertRaises(ValueError, self.here.grant, held))
            self.assertEqual(error.partition(":")[0], field)
        self.assertEqual(self.rows(ROLES), [])
