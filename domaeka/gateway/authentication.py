"""Authentication: judge whether a frame is to be believed."""

from collections.abc import Callable, Iterator
from enum import Enum
from typing import Final

from domaeka.config import AuthSettings
from domaeka.errors import ErrorCode, WireError
from domaeka.interfaces import DeviceKey
from domaeka.metrics import Metrics
from domaeka.policies.auth import NO_KEY, AuthFault, Seen, SignatureTable, Signer
from domaeka.policies.clock_check import ClockCheck
from domaeka.wire import Auth, is_name


class Verdict(Enum):
    """Verdict on a frame that is not refused."""

    SIGNED = "signed"  # by a signature that is new
    UNSIGNED = "unsigned"  # auth.mode demands no signature
    REPEAT = "repeat"  # the same line came before: it is dropped silently


# To look them up in their Enums takes 0.2 µs each.
_FRESH: Final = Seen.FRESH
_SIGNED: Final = Verdict.SIGNED


class Authentication:
    """
    Authentication of frames, as C{auth.mode} demands; counts refusals.

    @ivar clock_check: compares the server's clock with the phones'.
    """

    def __init__(
        self,
        settings: AuthSettings,
        signer: Signer,
        seconds: Callable[[], float],
        wall: Callable[[], float],
        metrics: Metrics,
    ) -> None:
        """
        @param seconds: the time now, in seconds, which never steps.
        @param wall: the wall clock, in seconds since 1970.
        """
        self.clock_check = ClockCheck(settings.clock_skew, seconds, wall)
        self._signatures = SignatureTable(settings.clock_skew, wall)
        self._metrics = metrics
        self.apply(settings, signer)

    def apply(self, settings: AuthSettings, signer: Signer) -> None:
        """Apply settings, at the start or when they have changed."""
        self._signatures.window = self.clock_check.window = settings.clock_skew
        self._mode = settings.mode
        self._off = settings.mode == "off"
        self._signer = signer

    @property
    def needs_no_proof(self) -> bool:
        """True if a handshake needs no proof."""
        return self._off

    def key_id(self, key: DeviceKey, signed: bool) -> str:
        """
        The id of the key by which a device has just proven itself.

        @param signed: whether it signed.
        """
        return self._signer.key_id(key) if signed and not self._off else NO_KEY

    def accepted_keys(self) -> frozenset[str]:
        """Ids of the keys by which a device may have proven itself."""
        unsigned = () if self._mode == "required" else (NO_KEY,)
        return frozenset((*self._signer.key_ids(), *unsigned))

    def judge(
        self, auth: Auth | None, key: DeviceKey | None, connection: int, line: bytes
    ) -> Verdict:
        """
        Judge a line.

        @param auth: its C{auth}.
        @param key: the device of the connection, if that is known.
        @param connection: its number.
        @raise AuthRefused: the proof is missing or wrong, which is counted.
        """
        if auth is None:
            if self._mode == "required" or key is None:
                raise self.refusal(AuthFault.MISSING, key)
            return Verdict.UNSIGNED
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
                return _SIGNED
            else:
                seen = self._signatures.judge(auth, connection, line, key)
                if seen is _FRESH:
                    device = (auth.bot_name, auth.device_id) if key is None else key
                    self.clock_check.right(device, auth.timestamp)
                    return _SIGNED
                if seen is Seen.REPEAT:
                    return Verdict.REPEAT
                fault = AuthFault.REPLAY if seen is Seen.REPLAY else AuthFault.STALE
        claimed = key or DeviceKey(auth.bot_name, auth.device_id)
        if fault is not AuthFault.WRONG_TIME:
            raise self.refusal(fault, claimed)
        self.clock_check.wrong(auth)
        raise self.refusal(fault, claimed, self._signer.skew(auth), auth.signature)

    def refusal(
        self,
        fault: AuthFault,
        claimed: DeviceKey | None,
        skew: float | None = None,
        signature: str = "",
    ) -> "AuthRefused":
        """Count a refusal.  @return: the exception to raise."""
        self._metrics.auth_failures.labels(fault).inc()
        return AuthRefused(fault, claimed, skew, signature)

    def forget(self) -> Iterator[None]:
        """Forget signatures that are no longer valid, some in each step; once a minute."""
        self.clock_check.turn()
        return self._signatures.sweep()


class AuthRefused(WireError):
    """
    A frame's C{auth} is missing or wrong.

    @ivar claimed: the device that the sender claims to be; L{None}: none.
    @ivar skew: lead of the peer's clock over ours, in seconds, if that is the fault.
    @ivar signature: the signature, which is right, if that is the fault.
    """

    def __init__(
        self,
        fault: AuthFault,
        claimed: DeviceKey | None,
        skew: float | None = None,
        signature: str = "",
    ) -> None:
        if fault is AuthFault.MISSING:
            super().__init__(ErrorCode.AUTH_REQUIRED, "a signature is required")
        else:
            super().__init__(ErrorCode.AUTH_FAILED, f"auth was not accepted: {fault}")
        self.fault = fault
        self.claimed = claimed
        self.skew = skew
        self.signature = signature
