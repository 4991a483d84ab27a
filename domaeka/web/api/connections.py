"""Endpoints of connections: those that are open, and how the last ones ended."""

from http import HTTPStatus
from typing import Any

from domaeka.interfaces import DeviceKey, Directory
from domaeka.schema import ClosedConnections, ClosedQuery, Connection, Connections, ConnectionsQuery
from domaeka.web.api.endpoints import EndpointGroup, Request, endpoint, not_found, settled


class ConnectionPages(EndpointGroup):
    """The endpoints of connections."""

    def __init__(self, directory: Directory) -> None:
        self._directory = directory

    @endpoint("GET", "/connections", "Connections that are open, with their quality")
    async def open(self, request: Request[ConnectionsQuery, None]) -> Connections:
        """A page of open connections."""
        return await settled(self._directory.connections(request.query))

    @endpoint(
        "GET", "/connections/closed", "The last 10,000 connections that ended, the last one first"
    )
    async def closed(self, request: Request[ClosedQuery, None]) -> ClosedConnections:
        """A page of ended connections."""
        return await settled(self._directory.closed(request.query))

    @endpoint(
        "GET",
        "/connections/{bot}/{device}",
        "The connection of a device",
        refusals={HTTPStatus.NOT_FOUND: "the device is not connected"},
    )
    async def one(self, request: Request[Any, None]) -> Connection:
        """The connection of a device."""
        key = DeviceKey(request.names["bot"], request.names["device"])
        found = await settled(self._directory.connection(key))
        if found is None:
            raise not_found("the device is not connected")
        return found
