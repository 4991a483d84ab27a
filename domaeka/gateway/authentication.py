"""Authentication: judge whether a frame is to be believed."""

from collections.abc import Callable, Iterator
from enum import Enum
from typing import Final

from domaeka.config import AuthSettings
from domaeka.errors import ErrorCode, WireError
from domaeka.gateway.peer import Peer
from domaeka.interfaces import DeviceKey
from domaeka.metrics import Metrics
from domaeka.policies.auth import NO_KEY, AuthFault, Signer
from domaeka.policies.clock_check import ClockCheck
from domaeka.policies.first_proof import FirstProofs
from domaeka.policies.signatures import Seen, SignatureTable
from domaeka.pools import Pool
from domaeka.wire import Auth, find_proofs, is_name

#: Most signatures that are looked for in bytes that are not served: a line of a phone has one, but
#: several lines come at a time behind one that is too long.  After so many wrong ones no more are.
PROOFS_AT_ONCE: Final = 512
WRONG_PROOFS: Final = 8


class Verdict(Enum):
    """Verdict on a frame that is not refused."""

    SIGNED = "signed"  # by a signature that is new
    UNSIGNED = "unsigned"  # auth.mode demands no signature
    DOUBTFUL = "doubtful"  # a right signature, which may be recorded: the peer is to prove itself
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
        self._signatures = SignatureTable(settings.clock_skew, seconds, wall, self._put_out)
        self._first_proofs = FirstProofs(seconds, wall)
        #: Gives the lead of a device's clock over ours, in seconds; L{None}: not known.
        self.lead_of: Callable[[DeviceKey], float | None] = lambda key: None
        self._wall = wall
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

    def judge(self, auth: Auth | None, peer: Peer, line: bytes) -> Verdict:
        """
        Judge a line.

        @param auth: its C{auth}.
        @param peer: from whom it came.
        @raise AuthRefused: the proof is missing or wrong, which is counted.
        """
        key = peer.key
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
                device = DeviceKey(auth.bot_name, auth.device_id) if key is None else key
                judge = self._signatures.judge
                if peer.signed:
                    seen = judge(auth, peer.number, line, device, peer.address)
                else:
                    lead = self.lead_of(device)
                    doubtful = not self._first_proofs.is_timely(auth.timestamp, lead)
                    seen = judge(
                        auth,
                        peer.number,
                        line,
                        device,
                        peer.address,
                        trusted=False,
                        doubtful=doubtful,
                    )
                if seen is _FRESH:
                    self.clock_check.right(device, auth.timestamp)
                    return _SIGNED
                if seen is Seen.REPEAT:
                    return Verdict.REPEAT
                if seen is Seen.DOUBTFUL:
                    return Verdict.DOUBTFUL
                fault = AuthFault.REPLAY if seen is Seen.REPLAY else AuthFault.STALE
        claimed = key or DeviceKey(auth.bot_name, auth.device_id)
        refusal = self.refusal(fault, claimed)
        if fault is AuthFault.WRONG_TIME:
            self.clock_check.wrong(auth)
            refusal.skew, refusal.signature = self._signer.skew(auth), auth.signature
        if fault is AuthFault.WRONG_TIME or fault is AuthFault.WRONG_DEVICE:
            self._spoil(auth, peer, line)
        elif fault is AuthFault.REPLAY:
            refusal.owner = self._signatures.owner(auth)
        raise refusal

    def not_served(self, line: bytes, peer: Peer) -> int:
        """
        Remember the signatures in a line that is not judged: it was refused, is half of a line, or
        is thrown away.

        @return: how many right ones there were.
        """
        if self._off:
            return 0
        found = wrong = 0
        for auth, shown in find_proofs(line, PROOFS_AT_ONCE):
            if self._signatures.knows(shown):
                found += 1
                continue
            whole = self._signer.completed(auth, shown)
            if whole is not None:
                found += 1
                self._spoil(whole, peer, line)
            elif (wrong := wrong + 1) >= WRONG_PROOFS:
                break
        return found

    def _spoil(self, auth: Auth, peer: Peer, line: bytes) -> None:
        """Remember a right signature, unless it will never be valid."""
        if self._signatures.wants(auth.timestamp):
            ahead = auth.timestamp / 1000 - self._wall() > self._signatures.window
            self._signatures.spoil(auth, peer.number, line, ahead=ahead, address=peer.address)

    def _put_out(self, claimant: object, count: int) -> None:
        self._metrics.pools.gave_way(Pool.SIGNATURES, claimant, count)

    def refusal(self, fault: AuthFault, claimed: DeviceKey | None) -> "AuthRefused":
        """Count a refusal.  @return: the exception to raise."""
        self._metrics.auth_failures.labels(fault).inc()
        return AuthRefused(fault, claimed)

    def forget(self) -> Iterator[None]:
        """Forget signatures that are no longer valid, some in each step; once a minute."""
        self.clock_check.turn()
        return self._signatures.sweep()


class AuthRefused(WireError):
    """
    A frame's C{auth} is missing or wrong.

    @ivar claimed: the device that the sender claims to be; L{None}: none.
    @ivar skew: lead of the peer's clock over ours, in seconds, if that is the fault.
    @ivar signature: the signature, which is right, if that is the fault; else empty.
    @ivar owner: number of the connection whose signature was replayed; 0: none was.
    """

    def __init__(self, fault: AuthFault, claimed: DeviceKey | None) -> None:
        if fault is AuthFault.MISSING:
            super().__init__(ErrorCode.AUTH_REQUIRED, "a signature is required")
        else:
            super().__init__(ErrorCode.AUTH_FAILED, f"auth was not accepted: {fault}")
        self.fault = fault
        self.claimed = claimed
        self.skew: float | None = None
        self.signature = ""
        self.owner = 0
