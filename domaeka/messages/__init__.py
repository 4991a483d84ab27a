"""
Lines to typed messages and back.

The wire itself is described in docs/protocol.md.  L{FrameReader.read} turns a line into one of
L{Handshake}, L{Chat}, L{Pong}, L{Ack} and L{Migrated}, or raises L{WireError}, and nothing else;
the C{encode_*} functions make whole lines, newline included.
"""

from domaeka.messages.inbound import (
    MAX_CLIENT_ID_CHARS,
    MAX_TEXT_CHARS,
    Ack,
    Auth,
    Chat,
    FrameReader,
    Handshake,
    Inbound,
    Migrated,
    Monitoring,
    Pong,
)
from domaeka.messages.names import MAX_NAME_CHARS, MAX_TITLE_CHARS, Dialect, is_name, sayable
from domaeka.messages.outbound import (
    MEDIA_DEFAULT_WAIT_SECONDS,
    MEDIA_SETTLE_SECONDS,
    Media,
    MediaType,
    Pack,
    Reply,
    encode_ack,
    encode_error,
    encode_frame,
    encode_handshake_complete,
    encode_migration,
    encode_ping,
    encode_reply,
    encode_shutdown,
    media_address,
    media_pieces,
    timestamp_text,
)

__all__ = [
    "MAX_CLIENT_ID_CHARS",
    "MAX_NAME_CHARS",
    "MAX_TEXT_CHARS",
    "MAX_TITLE_CHARS",
    "MEDIA_DEFAULT_WAIT_SECONDS",
    "MEDIA_SETTLE_SECONDS",
    "Ack",
    "Auth",
    "Chat",
    "Dialect",
    "FrameReader",
    "Handshake",
    "Inbound",
    "Media",
    "MediaType",
    "Migrated",
    "Monitoring",
    "Pack",
    "Pong",
    "Reply",
    "encode_ack",
    "encode_error",
    "encode_frame",
    "encode_handshake_complete",
    "encode_migration",
    "encode_ping",
    "encode_reply",
    "encode_shutdown",
    "is_name",
    "media_address",
    "media_pieces",
    "sayable",
    "timestamp_text",
]
