"""
The handshake of one connection: who it is, how it proves that, and what it is answered.
"""

from __future__ import annotations

from sys import intern
from typing import TYPE_CHECKING, Final

from twisted.logger import Logger
from twisted.python.failure import Failure

from domaeka.errors import CloseReason, ErrorCode, StoreError
from domaeka.gateway.probe import SERVER_NAME, probe_key
from domaeka.gateway.sender import Carrier
from domaeka.gateway.verifier import AuthRefused
from domaeka.interfaces import Approval, DeviceFacts, DeviceKey, Resumption
from domaeka.messages import Auth, Handshake, encode_handshake_complete, timestamp_text
from domaeka.policies.auth import AuthFault

if TYPE_CHECKING:
    from domaeka.gateway.registry import Registry
    from domaeka.gateway.session import Session
    from domaeka.gateway.states import State

_APPROVED = "연결되었습니다."
_NOT_APPROVED = "승인되지 않은 기기입니다. 운영자의 승인을 기다려 주세요."


NO_CAPABILITIES: Final[frozenset[str]] = frozenset()  # one for all: each takes 216 bytes


def signed_by(auth: Auth, address: str) -> tuple[DeviceKey, DeviceFacts]:
    """Who a phone is, of which nothing but a signature is known."""
    facts = DeviceFacts(auth.version or "", auth.client_type or "MessengerBotR", address=address)
    return DeviceKey(auth.bot_name, auth.device_id), facts


class Greeting:
    """
    Shake hands.

    A client with session tokens is answered once the store has spoken, and not read from until
    then; all others at once.

    @ivar waits: whether the answer is still to come.
    """

    log = Logger()

    __slots__ = ("_asks", "_carrier", "_parts", "_registry", "_session", "_token", "waits")

    def __init__(self, session: Session, registry: Registry, carrier: Carrier) -> None:
        self._session = session
        self._registry = registry
        self._parts = registry.parts
        self._carrier = carrier
        self._token: str | None = None
        self._asks = False  # it lists what it can do, and is told what of it is taken
        self.waits = False

    def handshake_received(self, handshake: Handshake, line: bytes, target: State) -> None:
        """
        The first handshake of the connection came.

        @param target: the state it leads to.
        """
        session = self._session
        parts = self._parts
        key = DeviceKey(handshake.bot_name, handshake.device_id)
        facts = DeviceFacts(
            # Most phones say the same: one text for all.
            intern(handshake.version),
            intern(handshake.client_type),
            handshake.device_ip,
            intern(handshake.device_info),
            session.address,
        )
        session.introduced(key, facts, target)
        self._asks = handshake.capabilities is not None
        if session.authenticated:
            # Known by a message until now; the handshake says more, too late for capabilities.
            judged = handshake.auth is not None and not parts.verifier.needless
            if judged and not self._proof_held(handshake.auth, line):
                return
            parts.devices.enter(key, facts)
            self._welcome()
            return
        if handshake.capabilities is not None:
            session.capabilities = handshake.capabilities & parts.capabilities or NO_CAPABILITIES
        session.sender.dialect = handshake.dialect
        proven = parts.verifier.needless
        if handshake.auth is not None and not proven:
            proven = self._proof_held(handshake.auth, line)
            if not proven:
                return
        tokens = "session" in session.capabilities
        if tokens and (proven or handshake.session_token is not None):
            self.waits = True
            self._carrier.pause_reading()
        if proven:
            if key.bot_name == SERVER_NAME and self._refuses_server(key):
                return
            session.authenticate(Auth)
        if not self.waits:
            self._welcome()
        elif handshake.session_token is not None:
            self._resume(handshake.session_token, proven)
        else:
            self._issue()

    def handshake_repeated(self) -> None:
        """The same handshake came again: answer it again, and change nothing."""
        if not self.waits:
            self._answer(None, False)

    def connection_lost(self) -> None:
        """The connection is gone: the lifetime of its token begins."""
        if self._token is not None:
            self._let_go(self._token)

    def _refuses_server(self, key: DeviceKey) -> bool:
        """
        A server that wants to move its phones here is shown out where ours are about to leave:
        they would be sent back and forth.
        """
        if not self._registry.moving or key == probe_key(self._parts.node):
            return False
        self._session.close(
            CloseReason.SHUTDOWN, ErrorCode.SHUTTING_DOWN, "the phones of this server are moving"
        )
        return True

    def _proof_held(self, auth: Auth | None, line: bytes) -> bool:
        """Judge the proof in a handshake; a bad one ends the connection."""
        session = self._session
        metrics = self._parts.metrics
        try:
            if self._parts.verifier.is_new(auth, session.key, session.number, line):
                return True
            error = AuthRefused(AuthFault.REPLAY)
            metrics.auth_failures.labels(error.fault).inc()
        except AuthRefused as refused:
            error = refused
        metrics.errors.labels(error.code).inc()
        if error.fault is AuthFault.WRONG_SIGNATURE:
            self._parts.limits.failed_signature(session.address)
        elif error.fault is AuthFault.WRONG_TIME:
            session.faults.clock_is_off()
        session.close(CloseReason.AUTHENTICATION_FAILED, error.code, error.text)
        return False

    # Session tokens

    def _resume(self, token: object, proven: bool) -> None:
        """Have the store judge a token."""

        def judged(result: Resumption) -> None:
            if result.token is not None:
                self._greet(result.token, result.key_id)
                return
            self._parts.metrics.auth_failures.labels(AuthFault.BAD_TOKEN).inc()
            if proven:
                self._issue()
            else:
                self._greet(None)

        sessions, key = self._parts.sessions, self._session.key
        assert sessions is not None and key is not None
        key_id = self._session.key_id if proven else None
        sessions.resume(token, key, key_id).addCallback(judged).addErrback(self._no_token)

    def _issue(self) -> None:
        """Have the store keep a new token."""
        sessions, key = self._parts.sessions, self._session.key
        assert sessions is not None and key is not None
        sessions.issue(key, self._session.key_id).addCallback(self._greet).addErrback(
            self._no_token
        )

    def _no_token(self, failure: Failure) -> None:
        """The store is slow or gone: that stops nobody."""
        if isinstance(failure.value, StoreError):
            self._greet(None)
        else:
            self.log.failure("{session}: our own mistake", failure, session=self._session)
            self._session.fail()

    def _greet(self, token: str | None, resumed_by: str | None = None) -> None:
        """
        The store has spoken.

        @param resumed_by: the id of the key behind the token that was shown; L{None}: none was,
            or it is not good.
        """
        session = self._session
        if session.closing:
            if token is not None:
                self._let_go(token)
            return
        self._token = token
        if resumed_by is not None and not session.authenticated:
            session.authenticate(Auth, key_id=resumed_by)
        self._welcome(resumed_by is not None)
        self._carrier.resume_reading()

    def _let_go(self, token: str) -> None:
        sessions, key = self._parts.sessions, self._session.key
        assert sessions is not None and key is not None
        sessions.connection_ended(key, token)

    # The answer

    def _welcome(self, resumed: bool = False) -> None:
        """Answer the first handshake; what waits for the device follows."""
        session = self._session
        self.waits = False
        if not session.authenticated:
            # Who has proven nothing could make us inflate anything.
            session.capabilities = _without(session.capabilities, "deflate")
        if "deflate" in session.capabilities:
            session.capabilities = _without(session.capabilities, "gzip")
        self._answer(self._token, resumed)
        session.welcomed()

    def _answer(self, token: str | None, resumed: bool) -> None:
        session = self._session
        parts = self._parts
        settings = parts.settings
        assert session.key is not None
        approval = parts.devices.approval(session.key)
        approved = approval is Approval.APPROVED or (
            approval is None and settings.devices.approval == "signed"
        )
        more: dict[str, object] = {}
        if self._asks:
            more["capabilities"] = sorted(session.capabilities)
        if "ack" in session.capabilities:
            more["epoch"] = self._registry.numbering(session)
        if token is not None:
            more |= {
                "session_token": token,
                "session_expires_in": settings.session.lifetime,
                "resumed": resumed,
                "max_frame_bytes": settings.server.max_frame_bytes,
                "ping_interval": settings.ping.interval,
                "node": parts.node,
            }
        session.send(
            "handshakeComplete",
            encode_handshake_complete(
                approved=approved,
                message=_APPROVED if approved else _NOT_APPROVED,
                server_version=parts.server_version,
                timestamp=timestamp_text(parts.seconds()),
                **more,
            ),
        )


def _without(capabilities: frozenset[str], one: str) -> frozenset[str]:
    """C{capabilities} but for C{one}."""
    return capabilities - {one} if one in capabilities else capabilities
