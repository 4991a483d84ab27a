"""Views of one connection, made from its parts."""

from typing import Final

from domaeka.errors import CloseReason
from domaeka.gateway.context import Context
from domaeka.gateway.conversation.keepalive import KeepAlive
from domaeka.gateway.device import Device
from domaeka.gateway.flow.writer import Writer
from domaeka.gateway.peer import Peer, State
from domaeka.gateway.views import ClosedConnection, ConnectionFigures, ConnectionName
from domaeka.interfaces import DeviceKey
from domaeka.schema import Connection, Grade, KernelView, PhoneFigures, Queue, Traffic
from domaeka.wire import timestamp_text

_NOBODY: Final = DeviceKey("", "")


def name_of(peer: Peer) -> ConnectionName:
    """The name of an authenticated connection in events."""
    assert peer.key is not None
    return ConnectionName(peer.number, peer.key, peer.address, peer.version)


def view_of(
    context: Context,
    peer: Peer,
    writer: Writer,
    keepalive: KeepAlive | None,
    device: Device | None,
    kernel: KernelView | None,
) -> Connection:
    """All figures of a connection that has named its device."""
    key, facts, monitoring = peer.key, peer.facts, peer.monitoring
    assert key is not None and facts is not None
    now = context.steady.exact()
    age = max(0.0, now - peer.made_at)
    skew = None if keepalive is None else keepalive.clock_skew
    return Connection(
        id=str(peer.number),
        bot=key.bot_name,
        device=key.device_id,
        address=peer.address,
        version=facts.version,
        client_type=facts.client_type,
        device_info=facts.device_info,
        # One that is in doubt, and has not shaken hands, is new still.
        state="greeted" if peer.state is State.NEW else peer.state.value,
        approval=context.devices.approval(key),
        capabilities=sorted(peer.capabilities),
        since=timestamp_text(context.wall() - age),
        age_seconds=round(age, 3),
        silent_seconds=round(min(age, max(0.0, now - peer.last_heard)), 3),
        quality=None if keepalive is None else keepalive.view(),
        bytes=Traffic(peer.bytes_received, writer.bytes_sent),
        messages=Traffic(peer.messages_received, writer.messages_sent),
        queue=Queue(0, 0, 0) if device is None else device.queue,
        monitoring=None
        if monitoring is None
        else PhoneFigures(
            round(max(0.0, now - peer.monitored_at), 3),
            monitoring.total_memory,
            monitoring.memory_usage,
            monitoring.memory_percent,
            monitoring.message_queue_size,
            monitoring.active_rooms,
        ),
        kernel=kernel,
        clock_skew_seconds=None if skew is None else round(skew, 3),
        ended_last_hour=0,
    )


def brief_of(
    peer: Peer, writer: Writer, keepalive: KeepAlive | None, device: Device | None
) -> ConnectionFigures:
    """Figures of a connection for filters and orders, in 1 µs; a view takes 15."""
    assert peer.key is not None
    return ConnectionFigures(
        peer.number,
        peer.key,
        peer.address,
        peer.version,
        peer.made_at,
        peer.last_heard,
        *_quality(keepalive),
        peer.messages_received + writer.messages_sent,
        peer.bytes_received + writer.bytes_sent,
        0 if device is None else device.outbox.messages,
    )


def ended_as(
    context: Context, peer: Peer, writer: Writer, keepalive: KeepAlive | None
) -> ClosedConnection:
    """Summary of a connection, at its end."""
    wall = context.wall()
    grade, score, _, rtt = _quality(keepalive)
    return ClosedConnection(
        peer.number,
        peer.key or _NOBODY,
        peer.address,
        peer.version,
        peer.reason or CloseReason.INTERNAL,
        wall - (context.steady.exact() - peer.made_at),
        wall,
        context.seconds(),
        peer.bytes_received,
        writer.bytes_sent,
        peer.messages_received,
        writer.messages_sent,
        score,
        grade,
        rtt,
    )


def _quality(
    keepalive: KeepAlive | None,
) -> tuple[Grade | None, int | None, float | None, float | None]:
    """Grade, score, loss and round trip; L{None}: no ping was answered or missed yet."""
    if keepalive is None or not keepalive.liveness.quality.known:
        return None, None, None, None
    quality = keepalive.liveness.quality
    return quality.grade, quality.score, quality.loss, quality.srtt
