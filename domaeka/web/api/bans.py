"""
Bans: who is not let in.
"""

from collections.abc import Callable
from heapq import nsmallest
from http import HTTPStatus
from typing import Annotated, Any, Final, TypeAlias

import msgspec
from msgspec import UNSET, Meta, UnsetType

from domaeka.gateway.registry import Registry
from domaeka.messages import timestamp_text
from domaeka.policies import limits
from domaeka.store.bans import StoredBans
from domaeka.web.api.devices import STORE_REFUSALS, decided
from domaeka.web.api.endpoints import (
    PAGE,
    After,
    Ask,
    Endpoint,
    Input,
    Limit,
    Next,
    Time,
    bad_request,
    not_found,
    time_text,
)
from domaeka.web.api.paging import cursor, read_cursor
from domaeka.web.routes import Refusal

_SUBJECT: Final = "bans"
#: Who made the bans that come from here.
_MADE_BY: Final = "operator"

_Network: TypeAlias = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=64,
        description="an address, or a network in CIDR form",
        examples=["203.0.113.7", "2001:db8::/64"],
    ),
]


_Seconds: TypeAlias = Annotated[
    float,
    Meta(
        gt=0,
        le=31_536_000,
        description="how long; null: until it is lifted; left out: `limits.ban_seconds`",
    ),
]


class Ban(msgspec.Struct):
    """A network that is not let in."""

    network: Annotated[str, Meta(description="in CIDR form")]
    reason: str
    made_at: Time
    expires: Annotated[Time | None, Meta(description="null: not until it is lifted")]
    times: Annotated[int, Meta(description="how often of late, this time included")]
    made_by: Annotated[str, Meta(description="empty: the server itself")]


class Bans(msgspec.Struct):
    """A page of bans, in the order of their networks as texts."""

    bans: list[Ban]
    next: Next
    total: int


class BansQuery(Input, frozen=True):
    """Which bans."""

    limit: Limit = PAGE
    after: After | None = None


class NewBan(Input, frozen=True):
    """Whom to ban."""

    network: _Network
    reason: Annotated[str, Meta(max_length=1000, description="for people")] = ""
    seconds: _Seconds | UnsetType | None = UNSET


class BanQuery(Input, frozen=True):
    """Which ban."""

    network: _Network


class BanPages:
    """What is asked of bans."""

    def __init__(
        self, registry: Registry, bans: StoredBans, lifted: Callable[[limits.Ban], None]
    ) -> None:
        """@param lifted: told of each ban that is lifted."""
        self._registry = registry
        self._lifted = lifted
        self._limits = registry.parts.limits
        self._bans = bans

    def endpoints(self) -> tuple[Endpoint, ...]:
        """What is to be served."""
        return (
            Endpoint(
                method="GET",
                path="/bans",
                serve=self.list,
                subject=_SUBJECT,
                summary="Bans that are in force",
                query=BansQuery,
                answer=Bans,
            ),
            Endpoint(
                method="POST",
                path="/bans",
                serve=self.ban,
                subject=_SUBJECT,
                summary="Ban a network, and close its connections",
                body=NewBan,
                answer=Ban,
                status=HTTPStatus.CREATED,
                refusals={HTTPStatus.CONFLICT: "there is no room for another ban"} | STORE_REFUSALS,
            ),
            Endpoint(
                method="DELETE",
                path="/bans",
                serve=self.lift,
                subject=_SUBJECT,
                summary="Lift the ban of a network",
                query=BanQuery,
                status=HTTPStatus.NO_CONTENT,
                refusals={HTTPStatus.NOT_FOUND: "it is not banned"} | STORE_REFUSALS,
            ),
        )

    def list(self, ask: Ask[BansQuery, None]) -> Bans:
        """A page of bans."""
        after = read_cursor(ask.query.after, str) or ""
        limit = ask.query.limit
        bans = {ban.network: ban for ban in self._limits.bans()}
        found = nsmallest(limit + 1, (network for network in bans if network > after))
        shown = found[:limit]
        return Bans(
            [describe_ban(bans[network]) for network in shown],
            cursor(shown[-1]) if len(found) > limit else None,
            len(bans),
        )

    async def ban(self, ask: Ask[Any, NewBan]) -> Ban:
        """An operator bans a network."""
        new = ask.body
        seconds = new.seconds
        if seconds is UNSET:
            seconds = self._registry.parts.settings.limits.ban_seconds
        limits = self._limits
        lifted = None
        try:
            ban = limits.ban(new.network, new.reason, seconds, _MADE_BY)
            if ban is None and (lifted := limits.first_to_end()) is not None:
                limits.lift(lifted.network)
                ban = limits.ban(new.network, new.reason, seconds, _MADE_BY)
        except ValueError:
            raise _no_network() from None
        if ban is None:
            raise Refusal(HTTPStatus.CONFLICT, "FULL", "there is no room for another ban")
        gone = [] if lifted is None else [lifted]
        for each in gone:
            self._lifted(each)
        self._registry.ban_made(ban)
        await decided(self._bans.put([ban], gone), "it holds, but not over a restart")
        return describe_ban(ban)

    async def lift(self, ask: Ask[BanQuery, None]) -> None:
        """An operator lifts a ban."""
        try:
            lifted = self._limits.lift(ask.query.network)
        except ValueError:
            raise _no_network() from None
        if lifted is None:
            raise not_found("this network is not banned")
        self._lifted(lifted)
        await decided(self._bans.remove(lifted.network), "it is lifted, but not over a restart")


def describe_ban(ban: limits.Ban) -> Ban:
    """A ban."""
    return Ban(
        ban.network,
        ban.reason,
        timestamp_text(ban.made_at),
        time_text(ban.expires),
        ban.times,
        ban.made_by,
    )


def _no_network() -> Refusal:
    return bad_request("network: is neither an address nor a network in CIDR form")
