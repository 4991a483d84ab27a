"""
Session tokens: their form, and their validity (docs/protocol.md, "Sessions").

A device has at most two: the newest, and the one that was used to get it.  Alone they are good for
the address only to which they were issued: on a line without TLS others see them.
"""

import hashlib
import hmac
import re
import secrets
from typing import Final, NamedTuple

from domaeka.policies.networks import address_key

#: Randomness in a token, in bytes.  Source: docs/protocol.md, "Sessions".
TOKEN_BYTES: Final = 32

_TOKEN = re.compile(r"[A-Za-z0-9_-]{43}\Z", re.ASCII)


def new_token() -> str:
    """A fresh random token: 43 URL-safe characters."""
    return secrets.token_urlsafe(TOKEN_BYTES)


def token_hash(token: object) -> str | None:
    """Hash of a token, to be stored; L{None}, without hashing, for what cannot be one."""
    if not isinstance(token, str) or not _TOKEN.match(token):
        return None
    return hashlib.sha256(token.encode()).hexdigest()


def address_hash(address: str) -> str:
    """Hash of an address, of IPv6 of its /64: equal where a token is good without a signature."""
    key = address_key(address)
    return hashlib.sha256(f"{address if key is None else key}".encode()).hexdigest()


class TokenPair(NamedTuple):
    """
    The tokens of one device, hashed.

    @ivar older: the one that was used to get C{newest}; L{None} where that was a signature.
    @ivar expires: when both end, in seconds since 1970.
    """

    newest: str
    older: str | None
    expires: float

    def is_good(self, used: str, now: float) -> bool:
        """True if the token hashed to C{used} is one of the two, in time."""
        newest = hmac.compare_digest(self.newest, used)
        older = self.older is not None and hmac.compare_digest(self.older, used)
        return (newest or older) and now < self.expires

    def after(self, used: str, fresh: str, expires: float) -> "TokenPair":
        """The pair once C{used}, which L{is_good}, has brought C{fresh}: all others die."""
        return TokenPair(fresh, used, expires)

    @property
    def size(self) -> int:
        """Number of tokens."""
        return 1 if self.older is None else 2
