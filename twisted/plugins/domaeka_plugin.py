"""Tells C{twistd} that there is a C{domaeka} command."""

from twisted.application.service import ServiceMaker

domaeka = ServiceMaker(  # type: ignore[no-untyped-call]
    "domaeka",
    "domaeka.tap",
    "A gateway for chat-bot phones.",
    "domaeka",
)
