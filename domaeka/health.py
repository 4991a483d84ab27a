"""Answers of C{/health} and C{/stats}, outside the API: for the server and for the commands."""

from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, UnsetType

from domaeka.schema import OTHERWISE


class Health(msgspec.Struct):
    """
    Answer of C{/health}.

    @ivar uptime: in seconds.
    @ivar checks: result of each check, by its name: C{ok}, or the fault.
    @ivar drain: state of a drain, while one runs; C{migration}: of a migration.
    """

    status: str
    timestamp: Annotated[str, Meta(extra={OTHERWISE: ""})]
    version: Annotated[str, Meta(extra={OTHERWISE: ""})]
    uptime: Annotated[float, Meta(extra={OTHERWISE: 0.0})]
    connections: float
    checks: dict[str, str]
    drain: dict[str, Any] | UnsetType = UNSET
    migration: dict[str, Any] | UnsetType = UNSET


class Stats(msgspec.Struct):
    """
    Answer of C{/stats}.

    @ivar uptime: in seconds.
    @ivar message_rate: messages a second, both ways.
    @ivar throughput: bytes a second, by C{sent} and C{received}.
    @ivar errors: counts, by kind.
    """

    uptime: float
    total_connections: float
    active_connections: float
    messages_sent: float
    messages_received: float
    message_rate: float
    throughput: dict[str, float]
    errors: dict[str, float]
