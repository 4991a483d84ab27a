"""Tests for L{domaeka.web.api.roles}."""

from typing import Any

from domaeka.store import roles
from domaeka.store.roles import ROLES, HeldRole
from tests.api_case import ROOM_ID, ApiCase

CLERK = {"role": "총무", "channel_id": ROOM_ID, "user_hash": "1a2b"}


class RolesTests(ApiCase):
    """Who holds a role."""

    def listed(self, **query: object) -> Any:
        """A page."""
        return self.get("/roles", **query)

    def stored(self) -> int:
        """How many are in the store."""
        return self.successResultOf(
            self.database.run_read(lambda c: len(c.execute(ROLES.select()).all()))
        )

    def test_granted(self) -> None:
        """A role is held at once, is listed, and is in the store."""
        status, role = self.ask("POST", "/roles", CLERK)
        self.assertEqual((status, role), (201, CLERK | {"granted_at": "2026-09-21T14:13:20.000Z"}))
        self.assertTrue(self.stored_roles.holds("총무", ROOM_ID, "1a2b"))
        self.assertEqual(self.listed(), {"roles": [role], "next": None, "total": 1})
        self.assertEqual(self.stored(), 1)
        self.run_for(60.0)
        self.assertEqual(self.ask("POST", "/roles", CLERK), (201, role))

    def test_withdrawn(self) -> None:
        """A role that is taken is gone, also from the store; one that is not held is not found."""
        self.ask("POST", "/roles", CLERK)
        self.assertEqual(self.ask("DELETE", "/roles", **CLERK), (204, None))
        self.assertFalse(self.stored_roles.holds("총무", ROOM_ID, "1a2b"))
        self.assertEqual(self.stored(), 0)
        self.assertEqual(self.refusal("DELETE", "/roles", **CLERK)[0], 404)

    def test_pages(self) -> None:
        """Page by page, in the order of roles and people."""
        people = [(role, str(channel), "h") for role in "나가" for channel in (3, 20, 1)]
        for person in people:
            self.successResultOf(self.stored_roles.grant(HeldRole(*person)))
        page = self.listed(limit=4)
        found = page["roles"] + self.listed(limit=4, after=page["next"])["roles"]
        shown = [(one["role"], one["channel_id"], one["user_hash"]) for one in found]
        self.assertEqual(shown, sorted(people))
        self.assertEqual(page["total"], 6)
        self.assertEqual(self.refusal("GET", "/roles", after="eA")[0], 400)

    def test_wrong_fields(self) -> None:
        """What nobody can hold is refused; the field is named."""
        for field, value in (
            ("role", ""),
            ("role", " 총무"),
            ("role", "x" * 129),
            ("channel_id", "우리방"),
            ("channel_id", ""),
            ("user_hash", ""),
            ("user_hash", "h\n"),
        ):
            for method in ("POST", "DELETE"):
                wrong = CLERK | {field: value}
                query, body = ({}, wrong) if method == "POST" else (wrong, None)
                status, _, text = self.refusal(method, "/roles", body, **query)
                self.assertEqual((status, text.split(":")[0]), (400, field), text)
        for field in CLERK:
            lacking = {name: value for name, value in CLERK.items() if name != field}
            self.assertEqual(self.refusal("POST", "/roles", lacking)[0], 400)
            self.assertEqual(self.refusal("DELETE", "/roles", **lacking)[0], 400)
        self.assertEqual(self.listed()["total"], 0)

    def test_no_room(self) -> None:
        """No more are given than there is room for."""
        self.patch(roles, "MAX_ROLES", 1)
        self.ask("POST", "/roles", CLERK)
        refused = self.refusal("POST", "/roles", CLERK | {"user_hash": "other"})
        self.assertEqual(refused[:2], (409, "FULL"))

    def test_store_is_down(self) -> None:
        """What could not be stored is not in force, and the operator is told."""
        self.ask("POST", "/roles", CLERK)
        connection = self.database._writes.raw_connection()
        connection.cursor().execute("PRAGMA query_only=ON")
        connection.close()
        for method, body, query in (
            ("POST", CLERK | {"user_hash": "other"}, {}),
            ("DELETE", None, CLERK),
        ):
            self.assertEqual(self.refusal(method, "/roles", body, **query)[:2], (503, "STORE"))
        self.assertEqual(list(self.stored_roles.held()), [HeldRole("총무", ROOM_ID, "1a2b")])
