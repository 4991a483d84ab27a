"""The proof that who answers at the HTTP port is the server, which commands ask for first."""

import re
from collections.abc import Callable
from http import HTTPStatus
from typing import Final

from domaeka.secrets import proof_of
from domaeka.web.routes import Answer, Call, Refusal, Route, as_json

#: Where it is asked for.
PROOF_PATH: Final = "/proof"
#: A number used once: enough that no answer can be prepared, and no more than fits.
_NONCE: Final = re.compile("[0-9a-f]{32,128}")


class ProofPage:
    """
    Answers a nonce with an HMAC by the admin token, to clients on this machine.

    A command sends the token over plain HTTP only to who has proven to have it already: another
    user of the machine may listen on the port while the server is down.
    """

    def __init__(self, token: Callable[[], str]) -> None:
        self._token = token

    def routes(self) -> tuple[Route, ...]:
        """The route to serve."""
        return (Route("GET", PROOF_PATH, self.prove),)

    def prove(self, call: Call) -> Answer:
        """The proof, and the port that it is good for."""
        nonce = call.query.get("nonce", ("",))[0]
        if not _NONCE.fullmatch(nonce):
            raise Refusal(
                HTTPStatus.BAD_REQUEST, "BAD_REQUEST", "nonce: must be 32 to 128 digits, 0 to f"
            )
        return as_json({"proof": proof_of(self._token(), nonce, call.port), "port": call.port})
