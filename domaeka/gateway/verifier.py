"""
Whether a frame is to be believed.
"""

from typing import Final

from domaeka.config import AuthSettings
from domaeka.errors import ErrorCode, WireError
from domaeka.interfaces import DeviceKey
from domaeka.messages import Auth, is_name
from domaeka.metrics import Metrics
from domaeka.policies.auth import NO_KEY, AuthFault, Seen, SignatureTable, Signer

_FRESH: Final = Seen.FRESH  # to look it up in its Enum takes 0.2 µs


class Verifier:
    """
    Judge what frames say of their sender, in the manner of C{auth.mode}.

    @ivar signatures: what was signed of late, by any device on any connection.
    """

    def __init__(
        self, auth: AuthSettings, signer: Signer, signatures: SignatureTable, metrics: Metrics
    ) -> None:
        self._mode = auth.mode
        self._off = auth.mode == "off"
        self._signer = signer
        self.signatures = signatures
        self._metrics = metrics

    @property
    def needless(self) -> bool:
        """Whether a handshake is proof enough."""
        return self._off

    def key_id(self, key: DeviceKey, signed: bool) -> str:
        """
        By which key a device has just proven itself: its id.

        @param signed: whether by a signature, where one is wanted at all.
        """
        return self._signer.key_id(key) if signed and not self._off else NO_KEY

    def accepted_keys(self) -> frozenset[str]:
        """The ids of the keys by which one may have proven oneself."""
        unsigned = () if self._mode == "required" else (NO_KEY,)
        return frozenset((*self._signer.key_ids(), *unsigned))

    def is_new(
        self, auth: Auth | None, key: DeviceKey | None, connection: int, line: bytes
    ) -> bool:
        """
        Judge a line.

        @param auth: its C{auth}.
        @param key: who the connection is, if that is known.
        @param connection: its number.
        @return: L{False} for a repeat, which is to be dropped without a word.
        @raise WireError: C{AUTH_REQUIRED} or C{AUTH_FAILED}.
        """
        if auth is None:
            if self._mode == "required" or key is None:
                self._metrics.auth_failures.labels(AuthFault.MISSING).inc()
                raise WireError(ErrorCode.AUTH_REQUIRED, "a signature is required")
            return True
        fault: AuthFault | None
        if self._off:
            named = is_name(auth.bot_name) and is_name(auth.device_id)
            fault = None if named else AuthFault.MALFORMED
        else:
            fault = self._signer.fault(auth, key)
        if fault is None:
            if key is not None and key != (auth.bot_name, auth.device_id):
                fault = AuthFault.WRONG_DEVICE
            elif self._off:
                return True
            else:
                seen = self.signatures.judge(auth, connection, line, key)
                if seen is _FRESH:
                    return True
                if seen is Seen.REPEAT:
                    return False
                fault = AuthFault.REPLAY if seen is Seen.REPLAY else AuthFault.STALE
        self._metrics.auth_failures.labels(fault).inc()
        raise AuthRefused(fault)


class AuthRefused(WireError):
    """A frame's C{auth} is not to be believed."""

    def __init__(self, fault: AuthFault) -> None:
        super().__init__(ErrorCode.AUTH_FAILED, f"auth was not accepted: {fault}")
        self.fault = fault
