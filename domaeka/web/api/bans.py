"""Endpoints of bans: networks that may not connect."""

from collections.abc import Callable
from http import HTTPStatus
from typing import Any, Final

from msgspec import UNSET

from domaeka.config import Settings
from domaeka.interfaces import Directory
from domaeka.policies import limits
from domaeka.policies.cursors import page, read_cursor
from domaeka.policies.limits import AddressLimits
from domaeka.schema import Ban, BanQuery, Bans, NewBan, PageQuery
from domaeka.store.bans import StoredBans
from domaeka.web.api.endpoints import (
    EndpointGroup,
    Request,
    bad_request,
    endpoint,
    not_found,
    settled,
    time_text,
)
from domaeka.web.api.records import STORE_REFUSALS, StoreWait
from domaeka.web.routes import Refusal
from domaeka.wire import timestamp_text

#: The maker of bans that come from here.
_MADE_BY: Final = "operator"


class BanPages(EndpointGroup):
    """The endpoints of bans."""

    def __init__(
        self,
        directory: Directory,
        limits: AddressLimits,
        bans: StoredBans,
        settings: Callable[[], Settings],
        lifted: Callable[[limits.Ban], None],
        store: StoreWait,
    ) -> None:
        """@param lifted: called with each ban that is lifted."""
        self._directory = directory
        self._limits = limits
        self._bans = bans
        self._settings = settings
        self._lifted = lifted
        self._store = store

    @endpoint("GET", "/bans", "Bans that are in force")
    def list(self, request: Request[PageQuery, None]) -> Bans:
        """A page of bans."""
        after = read_cursor(request.query.after, str) or ""
        bans = {ban.network: ban for ban in self._limits.bans()}
        shown, following = page(bans, after, request.query.limit)
        return Bans([describe_ban(bans[network]) for network in shown], following, len(bans))

    @endpoint(
        "POST",
        "/bans",
        "Ban a network, and close its connections",
        status=HTTPStatus.CREATED,
        refusals={HTTPStatus.CONFLICT: "there is no room for another ban"} | STORE_REFUSALS,
    )
    async def ban(self, request: Request[Any, NewBan]) -> Ban:
        """Ban a network."""
        new = request.body
        seconds = new.seconds
        if seconds is UNSET:
            seconds = self._settings().limits.ban_seconds
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
        await settled(self._directory.ban_made(ban))
        await self._store.decided(
            self._bans.put([ban], gone),
            "it holds, but not over a restart",
            "it holds; not known whether over a restart",
        )
        return describe_ban(ban)

    @endpoint(
        "DELETE",
        "/bans",
        "Lift the ban of a network",
        status=HTTPStatus.NO_CONTENT,
        refusals={HTTPStatus.NOT_FOUND: "it is not banned"} | STORE_REFUSALS,
    )
    async def lift(self, request: Request[BanQuery, None]) -> None:
        """Lift a ban."""
        try:
            lifted = self._limits.lift(request.query.network)
        except ValueError:
            raise _no_network() from None
        if lifted is None:
            raise not_found("this network is not banned")
        self._lifted(lifted)
        await self._store.decided(
            self._bans.remove(lifted.network),
            "it is lifted, but not over a restart",
            "it is lifted; not known whether over a restart",
        )


def describe_ban(ban: limits.Ban) -> Ban:
    """A ban as the API describes it."""
    return Ban(
        ban.network,
        ban.reason,
        timestamp_text(ban.made_at),
        time_text(ban.expires),
        ban.times,
        ban.made_by,
        ban.claimed_bot,
        ban.claimed_device,
    )


def _no_network() -> Refusal:
    return bad_request("network: is neither an address nor a network in CIDR form")
