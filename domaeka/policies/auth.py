"""Signatures of frames: docs/protocol.md, "auth"."""

import hashlib
from collections.abc import Callable, Sequence
from enum import StrEnum
from hmac import compare_digest
from math import inf
from typing import Final

import msgspec

from domaeka.wire import Auth, is_name

#: Devices of which it is known with which of several keys they sign.  Source: far more than one
#: server has connections for.
MAX_DEVICES: Final = 65_536
#: Value of an id or an address that the script may not see.
UNKNOWN: Final = "unknown"
#: Shared copies of values that most phones have in common.
_USUAL: Final = {text: text for text in (UNKNOWN, "MessengerBotR")}
#: Characters of a hexadecimal SHA-256.
_SIGNATURE_CHARS: Final = 64
#: Longest of the signed fields, in characters: as for names on the wire.
_MAX_FIELD_CHARS: Final = 128
#: Devices whose fields need not be looked at again.  Source: many thousand phones.
_MAX_FORMS: Final = 16_384
#: Key id of frames that were let through without a signature.
NO_KEY: Final = ""
#: Characters of a key's id.
_KEY_ID_CHARS: Final = 16
#: A phone's clock reads at most this, in milliseconds: the year 9999.
_MAX_TIMESTAMP_MS: Final = 253_402_300_799_999


class AuthFault(StrEnum):
    """Fault of a frame's C{auth}: the words of log and metric."""

    MISSING = "missing"
    MALFORMED = "malformed"
    WRONG_SIGNATURE = "wrong signature"
    WRONG_TIME = "wrong time"  # the signature is right: a clock is off, nobody attacks
    WRONG_DEVICE = "wrong device"
    REPLAY = "replay"
    STALE = "stale"
    BAD_TOKEN = "bad token"


class _Form(msgspec.Struct, frozen=True, gc=False):
    """
    Fields of a valid C{auth}, without its time.

    @ivar prefix: what is signed ahead of the time.
    """

    bot_name: str
    client_type: str | None
    device_uuid: str | None
    mac_address: str | None
    ip_address: str | None
    prefix: bytes


class _Key:
    """A secret, its two HMAC pads (RFC 2104) hashed once."""

    __slots__ = ("_inner", "_outer")

    def __init__(self, secret: bytes) -> None:
        if len(secret) > 64:
            secret = hashlib.sha256(secret).digest()
        secret = secret.ljust(64, b"\0")
        self._inner = hashlib.sha256(bytes(byte ^ 0x36 for byte in secret))
        self._outer = hashlib.sha256(bytes(byte ^ 0x5C for byte in secret))

    def sign(self, text: bytes) -> str:
        inner = self._inner.copy()
        inner.update(text)
        outer = self._outer.copy()
        outer.update(inner.digest())
        return outer.hexdigest()


def sign(
    secret_key: str,
    salt: str,
    client_type: str,
    bot_name: str,
    device_uuid: str,
    mac_address: str,
    ip_address: str,
    timestamp: int,
) -> str:
    """
    The signature of a phone.

    @param timestamp: in milliseconds since 1970.
    @return: 64 lower-case hexadecimal digits.
    """
    text = f"{client_type}|{bot_name}|{device_uuid}|{mac_address}|{ip_address}|{timestamp}|{salt}"
    return _Key(secret_key.encode()).sign(text.encode())


class Signer:
    """Sign notices of the server's own, and check signatures of phones."""

    def __init__(
        self,
        secrets: Sequence[str],
        salt: str,
        clock_skew: float,
        wall: Callable[[], float],
        previous_ends: float = inf,
    ) -> None:
        """
        @param secrets: the key first, then those that are still accepted.
        @param clock_skew: how far a phone's clock may be off either way, in seconds.
        @param wall: the wall clock, in seconds since 1970: by it phones sign.
        @param previous_ends: until when keys other than the first are accepted, by C{wall}.
        """
        self._previous_ends = previous_ends
        self._keys = [_Key(secret.encode()) for secret in secrets]
        self._salt = salt
        # The ids reveal neither a key nor its hash.
        self._key_ids = [key.sign(f"key id|{salt}".encode())[:_KEY_ID_CHARS] for key in self._keys]
        self._suffix = f"|{salt}".encode()
        #: Last signed fields of each device, by its id: comparing costs half of hashing.
        self._forms: dict[str, _Form] = {}
        #: Devices whose last signature held with the first of several keys.
        self._renewed: set[tuple[str, str]] = set()
        self._skew_ms = clock_skew * 1000
        self._wall = wall

    def sign(self, text: str, device: tuple[str, str] | None = None) -> str:
        """
        Sign a notice.

        @param text: its fields joined by C{|}, without the salt.
        @param device: the receiver; the notice is signed with the key that it used last.
        """
        key = self._keys[0]
        older = device is not None and device not in self._renewed
        if older and len(self._keys) > 1 and self._wall() < self._previous_ends:
            key = self._keys[1]
        return key.sign(f"{text}|{self._salt}".encode())

    def key_ids(self) -> list[str]:
        """Ids of the accepted keys."""
        return self._key_ids if self._wall() < self._previous_ends else self._key_ids[:1]

    def key_id(self, device: tuple[str, str]) -> str:
        """Id of the key with which a device signed last."""
        return self._key_ids[0 if device in self._renewed else -1]

    def skew(self, auth: Auth) -> float:
        """Lead of a phone's clock over ours, by a right signature, in seconds."""
        return auth.timestamp / 1000 - self._wall()

    def fault(self, auth: Auth, key: tuple[str, str] | None = None) -> AuthFault | None:
        """
        Judge what is signed, and when.

        @param key: the device of the connection, where known: only its texts are kept.
        @return: L{None} if the signature and its time are right.
        """
        form = self._forms.get(auth.device_id)
        known = (
            form is not None
            and auth.bot_name == form.bot_name
            and auth.client_type == form.client_type
            and auth.device_uuid == form.device_uuid
            and auth.mac_address == form.mac_address
            and auth.ip_address == form.ip_address
        )
        prefix = form.prefix if known and form is not None else _signed_prefix(auth)
        timestamp = auth.timestamp
        if type(timestamp) is float and timestamp.is_integer():
            timestamp = auth.timestamp = int(timestamp)
        signature = auth.signature
        if (
            prefix is None
            or type(timestamp) is not int
            or not 0 < timestamp <= _MAX_TIMESTAMP_MS
            or len(signature) != _SIGNATURE_CHARS
            or not signature.isascii()
        ):
            return AuthFault.MALFORMED
        text = b"%b%d%b" % (prefix, timestamp, self._suffix)
        for secret in self._keys:
            if compare_digest(secret.sign(text), signature):
                break
        else:
            return AuthFault.WRONG_SIGNATURE
        if secret is not self._keys[0] and self._wall() >= self._previous_ends:
            return AuthFault.WRONG_SIGNATURE
        if len(self._keys) > 1:
            self._note_key((auth.bot_name, auth.device_id), secret is self._keys[0])
        if abs(self._wall() * 1000 - timestamp) > self._skew_ms:
            return AuthFault.WRONG_TIME
        if not known:
            # The signature does not cover deviceID, but both ids are the Android id.
            uuid = auth.device_uuid
            if uuid and uuid != auth.device_id and UNKNOWN not in (uuid, auth.device_id):
                return AuthFault.WRONG_DEVICE
            if len(self._forms) >= _MAX_FORMS:
                self._forms.clear()
            bot_name, device_id = key or (auth.bot_name, auth.device_id)
            if (bot_name, device_id) != (auth.bot_name, auth.device_id):
                return None  # the caller judges that
            self._forms[device_id] = _Form(
                bot_name,
                _shared(auth.client_type, device_id),
                _shared(auth.device_uuid, device_id),
                _shared(auth.mac_address, device_id),
                _shared(auth.ip_address, device_id),
                prefix,
            )
        return None

    def completed(self, auth: Auth, shown: str) -> Auth | None:
        """
        Judge a signature of a line that is not read as a frame, whatever its time.

        @param auth: what is signed.
        @param shown: the signature, or its beginning, where the line was cut within it.
        @return: C{auth} with its whole signature; L{None}: C{shown} is not of a right one.
        """
        prefix = _signed_prefix(auth)
        timestamp = auth.timestamp
        if type(timestamp) is float and timestamp.is_integer():
            timestamp = auth.timestamp = int(timestamp)
        if prefix is None or type(timestamp) is not int or not 0 < timestamp <= _MAX_TIMESTAMP_MS:
            return None
        text = b"%b%d%b" % (prefix, timestamp, self._suffix)
        for secret in self._keys:
            signature = secret.sign(text)
            if compare_digest(signature[: len(shown)], shown):
                auth.signature = signature
                return auth
        return None

    def _note_key(self, device: tuple[str, str], first: bool) -> None:
        """Note the key of a device: notices to it are signed with the same."""
        if not first:
            self._renewed.discard(device)
        elif len(self._renewed) < MAX_DEVICES:
            self._renewed.add(device)


def _shared(field: str | None, device_id: str) -> str | None:
    """C{field}, as a shared copy where most phones have the same value."""
    if field == device_id:
        return device_id
    return _USUAL.get(field, field) if field is not None else None


def _signed_prefix(auth: Auth) -> bytes | None:
    """
    The signed text, up to the timestamp.

    @return: L{None} where the fields are not of the right form.
    """
    rest = (auth.device_uuid or "", auth.mac_address or "", auth.ip_address or "")
    client_type = auth.client_type or ""
    for field in (client_type, *rest):
        if len(field) > _MAX_FIELD_CHARS or "|" in field:
            return None
    if not is_name(auth.bot_name) or not is_name(auth.device_id):
        return None
    try:
        return "|".join((client_type, auth.bot_name, *rest, "")).encode()
    except UnicodeEncodeError:
        return None
