"""Endpoints of roles: who holds one."""

from http import HTTPStatus
from typing import Any

from domaeka.policies.cursors import page, read_cursor
from domaeka.schema import PageQuery, Role, RoleHolder, Roles
from domaeka.store.roles import HeldRole, StoredRoles
from domaeka.web.api.endpoints import EndpointGroup, Request, bad_request, endpoint, not_found
from domaeka.web.api.records import STORE_REFUSALS, StoreWait
from domaeka.web.routes import Refusal
from domaeka.wire import timestamp_text


class RolePages(EndpointGroup):
    """The endpoints of roles."""

    def __init__(self, roles: StoredRoles, store: StoreWait) -> None:
        self._roles = roles
        self._store = store

    @endpoint("GET", "/roles", "Roles that people hold")
    def list(self, request: Request[PageQuery, None]) -> Roles:
        """A page of roles."""
        after = read_cursor(request.query.after, tuple[str, str, str]) or ()
        roles = self._roles.held()
        shown, following = page(roles, after, request.query.limit)
        return Roles([_described(held, roles[held]) for held in shown], following, len(roles))

    @endpoint(
        "POST",
        "/roles",
        "Have a person hold a role",
        status=HTTPStatus.CREATED,
        refusals={HTTPStatus.CONFLICT: "there is no room for another role"} | STORE_REFUSALS,
    )
    async def grant(self, request: Request[Any, RoleHolder]) -> Role:
        """Grant a role."""
        held = _held(request.body)
        since = await self._store.decided(self._roles.grant(held))
        if since is None:
            raise Refusal(HTTPStatus.CONFLICT, "FULL", "there is no room for another role")
        return _described(held, since)

    @endpoint(
        "DELETE",
        "/roles",
        "Take a role from a person",
        status=HTTPStatus.NO_CONTENT,
        refusals={HTTPStatus.NOT_FOUND: "it is not held"} | STORE_REFUSALS,
    )
    async def withdraw(self, request: Request[RoleHolder, None]) -> None:
        """Withdraw a role."""
        if not await self._store.decided(self._roles.withdraw(_held(request.query))):
            raise not_found("this person does not hold this role")


def _held(wanted: RoleHolder) -> HeldRole:
    held = HeldRole(wanted.role, wanted.channel_id, wanted.user_hash)
    try:
        held.check()
    except ValueError as error:
        raise bad_request(str(error)) from None
    return held


def _described(held: HeldRole, since: float) -> Role:
    return Role(*held, timestamp_text(since))
