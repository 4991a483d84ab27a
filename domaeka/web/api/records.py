"""Endpoints of devices and rooms: their records, and decisions on them."""

from collections.abc import Callable, Sequence
from http import HTTPStatus
from typing import Any, ClassVar, Final, Literal, NamedTuple, TypeAlias, TypeVar

from msgspec.structs import replace
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from domaeka.errors import StoreError
from domaeka.interfaces import Approval, DeviceKey, Directory, Records, RoomKey
from domaeka.phone_script import is_outdated
from domaeka.policies.cursors import cursor, read_cursor
from domaeka.schema import Decision, Device, Devices, ForgetQuery, RecordsQuery, Room, Rooms
from domaeka.web.api.endpoints import Endpoint, Request, bad_request, not_found, settled, time_text
from domaeka.web.routes import Refusal
from domaeka.web.server import Timer
from domaeka.wire import MAX_NAME_CHARS, MAX_TITLE_CHARS, is_name

#: Removes the lines of a bot on a device, or in a room, from the chat log.
ForgetChat: TypeAlias = Callable[[str, str | None, str | None], "Deferred[None]"]

#: Longest time that an operator's decision waits for the store, in seconds.
DECISION_SECONDS: Final = 10.0
#: The refusal where the store cannot do something.
STORE_REFUSALS: Final[dict[int, str]] = {
    HTTPStatus.SERVICE_UNAVAILABLE: "the store cannot do it, or has not answered: see the message"
}

_T = TypeVar("_T")


class StoreWait:
    """Waits for the store on behalf of an operator, and not for ever."""

    _log = Logger()

    def __init__(self, timer: Timer) -> None:
        self._timer = timer

    async def decided(
        self,
        deciding: "Deferred[_T]",
        refused: str = "",
        unknown: str = "not known whether it is stored",
    ) -> _T:
        """
        Wait for a decision to be stored: its failure, or L{DECISION_SECONDS} without an answer,
        becomes a refusal.  What is late is carried out nevertheless.

        @param refused: what holds where it could not be stored, for people; C{unknown}: where the
            store has not answered.
        """
        waiting: Deferred[_T] = Deferred()

        def late() -> None:
            text = f"{unknown}: the store has not answered for {DECISION_SECONDS:.0f} s"
            waiting.errback(store_refusal(text))

        call = self._timer.callLater(DECISION_SECONDS, late)

        def over(outcome: Any) -> None:
            if call.active():
                call.cancel()
                waiting.callback(outcome)  # a failure, too
            elif isinstance(outcome, Failure):
                error = outcome.getErrorMessage()
                self._log.error("a decision that was late is not stored: {error}", error=error)
            else:
                self._log.info("a decision that was late is stored")

        deciding.addBoth(over)
        try:
            return await waiting
        except StoreError as error:
            text = f"{refused}: {error}" if refused else str(error)
            raise store_refusal(text) from None


def store_refusal(text: str) -> Refusal:
    """The refusal where the store failed."""
    return Refusal(HTTPStatus.SERVICE_UNAVAILABLE, "STORE", text)


class Kind(NamedTuple):
    """
    The kind of records: devices, or rooms.

    @ivar key: the type of their keys; C{one} and C{page}: those of the answers.
    @ivar id_chars: most characters of an id.
    @ivar forgetting: the facts that are forgotten with one.
    """

    name: Literal["device", "room"]
    key: type[Any]
    one: type[Any]
    page: type[Any]
    id_chars: int
    forgetting: str


class RecordPages:
    """The endpoints of devices, or of rooms."""

    kind: ClassVar[Kind]

    def __init__(
        self,
        records: Records,
        forgotten: Callable[[Literal["device", "room"], Any], object],
        forget_chat: ForgetChat,
        store: StoreWait,
        was_decided: Callable[[Any, Approval], object] = lambda key, approval: None,
    ) -> None:
        self._records = records
        self._forgotten = forgotten
        self._forget_chat = forget_chat
        self._store = store
        self._was_decided = was_decided

    def endpoints(self) -> tuple[Endpoint, ...]:
        """The endpoints."""
        name, _, one, page, _, forgetting = self.kind
        subject = f"{name}s"
        unknown: dict[int, str] = {HTTPStatus.NOT_FOUND: "it is not known"}
        connected: dict[int, str] = {HTTPStatus.CONFLICT: "it is connected"}
        several = Endpoint(
            method="GET",
            path=f"/{subject}",
            serve=self.listed,
            subject=subject,
            summary=f"{subject.title()} that are known",
            query=RecordsQuery,
            answer=page,
        )
        single = Endpoint(
            method="GET",
            path=f"/{subject}/{{bot}}/{{{name}}}",
            serve=self.show,
            subject=subject,
            summary=f"A {name}",
            answer=one,
            refusals=unknown,
        )
        return (
            several,
            single,
            replace(
                single,
                method="PATCH",
                serve=self.decide,
                summary=f"Decide on a {name}, at once; one that is not known is entered",
                body=Decision,
                refusals=STORE_REFUSALS,
            ),
            replace(
                single,
                method="DELETE",
                serve=self.forget,
                summary=f"Forget a {name}: {forgetting}",
                query=ForgetQuery,
                answer=None,
                status=HTTPStatus.NO_CONTENT,
                refusals=unknown | (connected if name == "device" else {}) | STORE_REFUSALS,
            ),
        )

    async def listed(self, request: Request[RecordsQuery, None]) -> Any:
        """A page of records, in the order of bots and ids."""
        query = request.query
        after = read_cursor(query.after, tuple[str, str])
        # Keys are in the order of their bots: no name is empty.
        start = self.kind.key(*(after or (query.bot, ""))) if after or query.bot else None
        found = self._records.page(start, query.limit + 1, query.status)
        if query.bot is not None:
            found = [record for record in found if record.key.bot_name == query.bot]
        shown = found[: query.limit]
        following = cursor(tuple(shown[-1].key)) if len(found) > query.limit else None
        return self.kind.page(await self._described(shown), following)

    async def show(self, request: Request[Any, Any]) -> Any:
        """A device, or a room."""
        return (await self._described([self._known(self._key(request))]))[0]

    async def decide(self, request: Request[Any, Decision]) -> Any:
        """Decide on a device, or a room."""
        key = self._key(request)
        if not (is_name(key[0]) and is_name(key[1], self.kind.id_chars)):
            raise bad_request(f"no {self.kind.name} can have this name")
        status = request.body.status
        deciding = self._records.set_approval(key, status)
        await self._store.decided(deciding.addCallback(lambda _: self._was_decided(key, status)))
        return await self.show(request)

    async def forget(self, request: Request[ForgetQuery, None]) -> None:
        """Forget a device, or a room."""
        key, name = self._key(request), self.kind.name
        self._known(key)
        await self._forget(key)
        self._forgotten(name, key)
        if request.query.chat_log:
            device, room = (key[1], None) if name == "device" else (None, key[1])
            removing = self._forget_chat(key[0], device, room)
            await self._store.decided(
                removing,
                "it is forgotten, but not all that was said there",
                "it is forgotten, and what was said there is still being removed",
            )

    def _key(self, request: Request[Any, Any]) -> Any:
        return self.kind.key(request.names["bot"], request.names[self.kind.name])

    def _known(self, key: Any) -> Any:
        record = self._records.record(key)
        if record is None:
            raise not_found(f"the {self.kind.name} is not known")
        return record

    async def _forget(self, key: Any) -> None:
        self._known(key)  # still
        unknown = "not known whether it is forgotten"
        await self._store.decided(self._records.forget(key), unknown=unknown)

    async def _described(self, records: Sequence[Any]) -> list[Any]:
        raise NotImplementedError


class DevicePages(RecordPages):
    """The endpoints of devices."""

    kind = Kind(
        "device",
        DeviceKey,
        Device,
        Devices,
        MAX_NAME_CHARS,
        "its status, its session tokens and what waits for it",
    )

    def __init__(self, directory: Directory, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._directory = directory

    async def _forget(self, key: DeviceKey) -> None:
        (presence,) = await settled(self._directory.presence([key]))
        if presence.is_connected:
            raise Refusal(
                HTTPStatus.CONFLICT,
                "CONNECTED",
                "the device is connected, and would be entered again: have it disconnected, or "
                "block it",
            )
        await super()._forget(key)
        await settled(self._directory.forget(key))

    async def _described(self, records: Sequence[Any]) -> list[Device]:
        here = await settled(self._directory.presence([record.key for record in records]))
        return [
            Device(
                record.key.bot_name,
                record.key.device_id,
                record.approval,
                presence.is_connected,
                record.facts.version,
                record.facts.client_type,
                record.facts.device_ip,
                record.facts.device_info,
                record.facts.address,
                time_text(record.first_seen),
                time_text(record.last_seen if presence.heard_at is None else presence.heard_at),
                presence.queue,
                is_outdated(record.facts.client_type, record.facts.version),
            )
            for record, presence in zip(records, here, strict=True)
        ]


class RoomPages(RecordPages):
    """The endpoints of rooms."""

    kind = Kind(
        "room", RoomKey, Room, Rooms, MAX_TITLE_CHARS, "its status, and where it was last heard"
    )

    def __init__(self, directory: Directory, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._directory = directory

    async def _described(self, records: Sequence[Any]) -> list[Room]:
        phones = list({record.device for record in records if record.device is not None})
        here = await settled(self._directory.presence(phones))
        started = {
            phone: presence.app_started_at for phone, presence in zip(phones, here, strict=True)
        }
        return [
            Room(
                record.key.bot_name,
                record.key.room_id,
                record.name,
                record.is_group,
                record.approval,
                None if record.device is None else record.device.device_id,
                time_text(record.last_heard),
                record.is_answerable(started.get(record.device)),
            )
            for record in records
        ]
