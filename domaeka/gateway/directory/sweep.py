"""The sweep: once a second it advances the steady time and attends to all connections."""

from collections.abc import Callable, Iterator
from typing import Final

from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from domaeka.errors import ErrorCode
from domaeka.gateway.context import SWEEP_SECONDS, Context
from domaeka.gateway.device import Device
from domaeka.gateway.directory.admission import Admission
from domaeka.gateway.directory.decisions import Decisions
from domaeka.gateway.directory.registry import Registry
from domaeka.policies.limits import HELD_SECONDS, Ban
from domaeka.wire import timestamp_text

#: Delay of the sweep that counts as unhealthy, in seconds.
LATE_SECONDS: Final = 10.0
#: Period in which old signatures are forgotten, in seconds.
FORGET_SECONDS: Final = 60.0
#: Period in which attempts and wrong signatures are judged, in seconds.  Source: docs/settings.md,
#: C{limits.ban_after}.
LIMITS_SECONDS: Final = 10.0


class Sweep:
    """
    Attends to all connections and devices, so that none needs a timer of its own, but for the
    first second of a connection without handshake.
    """

    log = Logger()

    def __init__(
        self,
        context: Context,
        registry: Registry,
        admission: Admission,
        decisions: Decisions,
        reactor: IReactorTime,
    ) -> None:
        self._context = context
        self._registry = registry
        self._admission = admission
        self._decisions = decisions
        self._accepted_keys = context.authentication.accepted_keys()
        self._forget_due = FORGET_SECONDS
        self._limits_due = LIMITS_SECONDS
        self._clock_is_wrong = False
        self._swept_at = context.seconds()
        self._call = LoopingCall(self._sweep)
        self._call.clock = reactor

    def start(self) -> None:
        """Begin to sweep."""
        self._swept_at = self._context.seconds()
        self._call.start(SWEEP_SECONDS, now=False).addErrback(
            lambda failure: self.log.failure("the sweep has ended", failure)
        )

    def stop(self) -> None:
        """Sweep no more."""
        if self._call.running:
            self._call.stop()

    def health(self) -> str | None:
        """Fault of the sweep, in words; L{None}: there is none."""
        if not self._call.running:
            return "it does not run"
        late = self._context.seconds() - self._swept_at
        return None if late < LATE_SECONDS else f"it last ran {late:.0f} s ago"

    def _sweep(self) -> None:
        context = self._context
        judging = context.steady.advance()
        now = context.steady.now
        self._admission.sweep(now)
        for member in self._registry:
            with self._registry.guard(member):
                member.attend(now, judging)
        if context.authentication.accepted_keys() != self._accepted_keys:
            self._accepted_keys = context.authentication.accepted_keys()
            self._guarded(self._decisions.end_old_keys)
        self._sweep_devices(now)
        budget, metrics = context.budget, context.metrics
        metrics.expired_messages.value = budget.expired
        metrics.dropped_messages.value = budget.dropped
        metrics.forgotten_messages.value = budget.forgotten
        metrics.bad_acks.value = budget.bad_acks
        if now >= self._limits_due:
            judged_at = self._limits_due - LIMITS_SECONDS
            self._limits_due = now + LIMITS_SECONDS
            self._guarded(self._sweep_limits, judged_at)
            self._guarded(self._decisions.enter_waiting)
            self._guarded(self._check_clock)
        if now >= self._forget_due:
            self._forget_due = now + FORGET_SECONDS
            self._cooperate(context.authentication.forget())
        for pool, claimant, count in metrics.pools.news(now):
            self.log.warn(
                "{pool}: at its bound: {count} gave way, of {claimant} last",
                pool=pool,
                count=count,
                claimant=claimant or "nobody in particular",
            )
        self._swept_at = context.seconds()

    def _sweep_devices(self, now: float) -> None:
        exact = self._context.seconds()
        away: list[Device] = []
        for device in self._registry.devices():
            if device.outbox.touched:  # most are idle
                self._guarded(device.expire, exact, now)
            if device.connection is None and device.is_idle:
                away.append(device)
        self._registry.forget_away(away, now)

    def _guarded(self, part: Callable[..., object], *args: object) -> None:
        """Do a part of the sweep; an error in it does not end the rest."""
        try:
            part(*args)
        except Exception:
            self.log.failure("{part}: our own mistake", part=part)
            self._context.metrics.errors.labels(ErrorCode.INTERNAL).inc()

    def _cooperate(self, steps: Iterator[None], then: Callable[[], object] = lambda: None) -> None:
        """Take a step in each turn of the reactor, so that phones need not wait."""

        def step() -> None:
            for _ in steps:
                self._context.call_soon(lambda: self._guarded(step))
                return
            then()

        self._guarded(step)

    def _check_clock(self) -> None:
        """Log when the server's clock is found wrong, and when it is right again."""
        check = self._context.authentication.clock_check
        fault = check.health()
        if fault is not None and not self._clock_is_wrong:
            self.log.error("{error}", error=fault, offset_seconds=round(check.offset(), 3))
        elif fault is None and self._clock_is_wrong:
            self.log.info("this server's clock is right again")
        self._clock_is_wrong = fault is not None

    # Limits of addresses

    def _sweep_limits(self, judged_at: float) -> None:
        """Forget old attempts of addresses; ban addresses that are due for it."""
        limits, admission = self._context.limits, self._admission
        for member in self._registry:
            peer = member.peer
            if peer.authenticated and peer.last_heard >= judged_at:
                if admission.is_rightful(member):
                    limits.verified(peer.address)
                if peer.signed and peer.key is not None:
                    self._context.devices.heard(peer.key)
        now = self._context.steady.exact()
        for stranger in admission.strangers():
            if now - stranger.peer.made_at >= HELD_SECONDS:
                limits.used(stranger.peer.address)
        self._cooperate(limits.sweep(), self._judge)

    def _judge(self) -> None:
        """Ban addresses that are due for it: a few at a time, so that phones need not wait."""
        context = self._context
        bans = context.limits.judge()
        if not bans:
            return
        for ban in bans:
            self._log_ban(ban)
            context.events.banned(ban)
        context.store_bans(bans)
        # A phone that is about to prove itself would take a ban for final.
        for stranger in self._admission.strangers(unclaimed=True):
            if context.limits.bans_address(stranger.peer.address):
                self._decisions.shut_out(stranger)
        context.call_soon(lambda: self._guarded(self._judge))

    def _log_ban(self, ban: Ban) -> None:
        """Log a ban, its reason, and the command to lift it."""
        claims = ""
        cure = "where these are yours, name them in limits.allow, then"
        if ban.claimed_bot:
            claims = ", of what claims to be bot {claimed_bot!r}, device {claimed_device!r}"
            cure = "where it is yours, mend its secret key and salt (domaeka secrets show), then"
        # Not as a field: a long one would be cut.
        lift = self._context.lift_command(ban.network).replace("{", "{{").replace("}", "}}")
        self.log.warn(
            f"banned {{network}} for {{ban_seconds:.0f}} s: {{reason}}{claims}; {cure}: {lift}",
            network=ban.network,
            ban_seconds=ban.seconds,
            until=None if ban.expires is None else timestamp_text(ban.expires),
            reason=ban.reason,
            claimed_bot=ban.claimed_bot,
            claimed_device=ban.claimed_device,
        )
