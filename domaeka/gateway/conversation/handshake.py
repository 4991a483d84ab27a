"""The handshake: the peer's name, its capabilities, its session token, and the reply."""

from sys import intern
from typing import Final, NamedTuple

from twisted.internet.defer import Deferred

from domaeka.errors import StoreError
from domaeka.gateway.context import Context
from domaeka.gateway.peer import NO_CAPABILITIES, Peer
from domaeka.interfaces import Approval, DeviceFacts, DeviceKey
from domaeka.policies.auth import AuthFault
from domaeka.texts_ko import APPROVED_TEXT, NOT_APPROVED_TEXT
from domaeka.wire import Auth, Handshake, encode_handshake_complete, timestamp_text

#: Time after which a device that has signed, and is not entered, gets the reply to its handshake,
#: in seconds: whoever makes devices up is slowed down.
NOT_ENTERED_SECONDS: Final = 1.0


class Token(NamedTuple):
    """
    Answer of the store about session tokens.

    @ivar text: the fresh token; L{None}: none.
    @ivar resumed_by: the id of the key behind the token that was shown; L{None}: no valid one was.
    """

    text: str | None = None
    resumed_by: str | None = None


def named_by_handshake(handshake: Handshake, address: str) -> tuple[DeviceKey, DeviceFacts]:
    """Name and facts from a handshake."""
    facts = DeviceFacts(
        # One shared copy, for most phones have the same.
        intern(handshake.version),
        intern(handshake.client_type),
        handshake.device_ip,
        intern(handshake.device_info),
        address,
    )
    return DeviceKey(handshake.bot_name, handshake.device_id), facts


def named_by_signature(auth: Auth, address: str) -> tuple[DeviceKey, DeviceFacts]:
    """Name and facts from a signature alone."""
    facts = DeviceFacts(auth.version or "", auth.client_type or "MessengerBotR", address=address)
    return DeviceKey(auth.bot_name, auth.device_id), facts


def taken_capabilities(handshake: Handshake, context: Context) -> frozenset[str]:
    """Capabilities that a handshake offers and the server has."""
    if handshake.capabilities is None:
        return NO_CAPABILITIES
    return handshake.capabilities & context.capabilities or NO_CAPABILITIES


def settled_capabilities(peer: Peer) -> frozenset[str]:
    """Capabilities that a connection keeps once its proof has been judged."""
    left = peer.capabilities
    if "ack" not in left:
        left -= {"delivery"}  # reports name messages by their numbers
    if not peer.authenticated and "deflate" in left:
        left -= {"deflate"}  # strangers must not have us inflate streams
    if "deflate" in left and "gzip" in left:
        left -= {"gzip"}
    return left


async def ask_store(context: Context, peer: Peer, shown: object, key_id: str | None) -> Token:
    """
    Have the store judge the token that was shown, if any, and issue a fresh one.  A device that
    waits for its entry gets none, and waits for L{NOT_ENTERED_SECONDS}.

    @param shown: of whatever type; L{None}: none.
    @param key_id: of the key of a valid signature beside it; L{None}: there was none.
    @return: no token where the store is slow or gone, so that nobody waits for it.
    """
    sessions, key = context.sessions, peer.key
    if waits_for_entry(context, peer):
        waited: Deferred[Token] = Deferred()
        context.call_later(NOT_ENTERED_SECONDS, lambda: waited.callback(Token()))
        return await waited
    assert sessions is not None and key is not None
    try:
        if shown is not None:
            resumption = await sessions.resume(shown, key, peer.address, key_id)
            if resumption.token is not None:
                return Token(resumption.token, resumption.key_id)
            context.metrics.auth_failures.labels(AuthFault.BAD_TOKEN).inc()
        return Token() if key_id is None else Token(await sessions.issue(key, peer.address, key_id))
    except StoreError:
        return Token()


def waits_for_entry(context: Context, peer: Peer) -> bool:
    """True for a device that has signed and is not entered: its address brings too many."""
    if not peer.signed or peer.key is None or context.held.holding:
        return False
    if context.settings.devices.approval != "signed":
        return False  # it is served no sooner for being entered
    return context.devices.approval(peer.key) is None


def handshake_reply(
    context: Context, peer: Peer, token: Token, epoch: str | None, tells_capabilities: bool
) -> bytes:
    """
    The reply to a handshake.  To a peer that has not proven its name it tells nothing of the
    device: each name gets the same.

    @param epoch: of the numbers of the connection, where it acknowledges.
    @param tells_capabilities: whether the peer listed capabilities.
    """
    settings = context.settings
    assert peer.key is not None
    approval = context.devices.approval(peer.key) if peer.authenticated else None
    approved = approval is Approval.APPROVED or (
        approval is None
        and settings.devices.approval == "signed"
        and not waits_for_entry(context, peer)
    )
    more: dict[str, object] = {}
    if tells_capabilities:
        more["capabilities"] = sorted(peer.capabilities)
    if epoch is not None:
        more["epoch"] = epoch
    if token.text is not None:
        more |= {
            "session_token": token.text,
            "session_expires_in": settings.session.lifetime,
            "resumed": token.resumed_by is not None,
            "max_frame_bytes": settings.server.max_frame_bytes,
            "ping_interval": settings.ping.interval,
            "node": context.node,
        }
    return encode_handshake_complete(
        approved=approved,
        message=APPROVED_TEXT if approved else NOT_APPROVED_TEXT,
        server_version=context.server_version,
        timestamp=timestamp_text(context.wall()),
        **more,
    )


def release_token(context: Context, peer: Peer, token: str) -> None:
    """Begin the lifetime of a token whose connection is gone."""
    assert context.sessions is not None and peer.key is not None
    context.sessions.connection_ended(peer.key, token)
