"""
What becomes of chat that comes in: who says it is judged, and where, then bots are asked.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from domaeka.interfaces import ChatLine, RoomKey
from domaeka.messages import Chat, encode_ack

if TYPE_CHECKING:
    from domaeka.gateway.device import Device
    from domaeka.gateway.registry import Registry
    from domaeka.gateway.session import Session


class Intake:
    """Take chat, of all connections."""

    def __init__(self, registry: Registry) -> None:
        """@param registry: who is connected."""
        self._registry = registry
        self._parts = registry.parts
        self._received = registry.parts.metrics.messages_received
        self._repeats = registry.parts.metrics.repeats_dropped

    def chat_received(self, session: Session, chat: Chat, line: bytes) -> None:
        """
        Somebody wrote something.

        @param line: what C{chat} was read from.
        @raise WireError: it is not to be believed, or cannot be inflated.
        """
        parts = self._parts
        self._received.value += 1
        valve = session.valve
        valve.message_came()
        acknowledges = chat.client_id is not None and "ack" in session.capabilities
        if not parts.verifier.is_new(chat.auth, session.key, session.number, line):
            known = session.device
            # A line may come again that was refused the first time: that one was never taken.
            if not acknowledges or known is None or chat.client_id in known.client_ids:
                self._repeats.value += 1
                if acknowledges and known is not None:
                    _acknowledge(session, known, chat)
                return
        device = session.device
        if device is None:
            device = session.known_by(chat)
        elif not session.signed and chat.auth is not None:
            self._registry.now_signed(session)
        session.messages_received += 1
        session.sender.dialect = chat.dialect
        if chat.packed is not None:
            packed_bytes = len(chat.packed)
            parts.reader.inflate(chat)
            stages = parts.metrics.compression_bytes
            stages.labels("wire").value += packed_bytes
            stages.labels("plain").value += len(chat.text.encode())
        if self._registry.draining:
            session.faults.refuse_work()
            return
        if acknowledges and not _acknowledge(session, device, chat):
            return
        if not chat.text:
            return
        key = device.key
        room_id = chat.room_id
        heard = parts.rooms.enter(RoomKey(key.bot_name, room_id), key, chat.room, chat.is_group)
        if parts.chat_log is not None:
            parts.chat_log.append(
                ChatLine(
                    parts.seconds(),
                    "in",
                    key.bot_name,
                    key.device_id,
                    room_id,
                    chat.room,
                    chat.sender,
                    chat.user_hash,
                    chat.log_id,
                    chat.text,
                )
            )
        if heard and device.approved:
            device.submit(chat)
        if not valve.calm:
            session.judge_reading()


def _acknowledge(session: Session, device: Device, chat: Chat) -> bool:
    """Tell a client that its message is taken.  @return: whether it is new."""
    assert chat.client_id is not None
    session.sender.urge("ack", encode_ack(chat.client_id))
    return not device.client_ids.seen(chat.client_id)
