"""Tests for L{domaeka.gateway.serving}, and that its table is what servers really do."""

import msgspec
from twisted.trial.unittest import SynchronousTestCase

from domaeka.gateway.lifecycle.migration import MigrationPlan
from domaeka.gateway.lifecycle.probe import PROBE_SECONDS
from domaeka.gateway.serving import NEXT, NotNow, ServerState, Serving, Step
from tests.server_case import HOST, Server, ServerCase


class ServingTests(SynchronousTestCase):
    """Tests for L{Serving}."""

    def test_steps(self) -> None:
        """A step of the table is taken; another is refused, and changes nothing."""
        serving = Serving()
        serving.take(Step.OPEN)
        self.assertIs(serving.state, ServerState.SERVING)
        self.assertFalse(serving.may(Step.CALL_OFF))
        self.assertRaises(NotNow, serving.take, Step.CALL_OFF)
        self.assertIs(serving.state, ServerState.SERVING)

    def test_questions(self) -> None:
        """Each state answers whether work is taken, phones are let in, and are to leave."""
        answers = {}
        serving = Serving()
        way = (None, Step.OPEN, Step.MOVE, Step.EMPTY, Step.DRAIN, Step.STOP, Step.END)
        for state, step in zip(ServerState, way, strict=True):
            if step is not None:
                serving.take(step)
            self.assertIs(serving.state, state)
            yes = (serving.takes_work, serving.lets_in, serving.is_leaving)
            answers[state.value] = "".join("ny"[one] for one in yes)
        self.assertEqual(
            answers,
            {
                "starting": "ynn",
                "serving": "yyn",
                "moving": "yyn",
                "away": "yny",
                "draining": "nny",
                "stopping": "nny",
                "stopped": "nny",
            },
        )

    def test_all_end(self) -> None:
        """From every state the process can end; from the last one nothing leads away."""
        for state in ServerState:
            ends = (state, Step.STOP) in NEXT
            self.assertEqual(ends, state not in (ServerState.STOPPING, ServerState.STOPPED))
            self.assertFalse(state is ServerState.STOPPED and any(s is state for s, _ in NEXT))


class JourneyTests(ServerCase):
    """Whole servers take every step of the table."""

    def setUp(self) -> None:
        super().setUp()
        self.taken: set[tuple[ServerState, Step]] = set()
        take = Serving.take

        def watched(serving: Serving, step: Step) -> None:
            before = serving.state
            take(serving, step)
            self.taken.add((before, step))

        self.patch(Serving, "take", watched)
        self.other = Server(self, 9100)
        self.server.start()
        secrets = (self.server.state / "secrets.toml").read_bytes()
        self.server.stop()
        for server in (self.server, self.other):
            (server.state / "secrets.toml").write_bytes(secrets)
            (server.state / "secrets.toml").chmod(0o600)
        self.other.start()
        self.network.holes.add(9999)

    def migrate(self, port: int = 9100) -> None:
        """Have all phones move; nobody answers at port 9999."""
        body = {"host": HOST, "port": port, "migrate_after": 1, "spread": 1}
        self.server.begin("POST", "/api/v1/migration", body)
        self.run_for(1.0)

    def hold(self) -> None:
        """A phone is owed an answer."""
        self.server.phone().say("# slow")
        self.run_for(0.1)

    def reach(self, state: ServerState) -> None:
        """Start a server, and bring it to a state that is not its end."""
        self.server.threads.stuck = state is ServerState.STARTING
        plan = self.server.state / "migration.json"
        if state is ServerState.MOVING:
            plan.write_bytes(msgspec.json.encode(MigrationPlan(HOST, 9999, False, 1.0, 1.0)))
        else:
            plan.unlink(missing_ok=True)
        self.server.start()
        if state is ServerState.AWAY:
            self.migrate()
        elif state is ServerState.DRAINING:
            self.hold()
            self.server.ask("POST", "/api/v1/drain")
        self.assertIs(self.server.serving, state)

    def end(self) -> None:
        """Stop it, whatever it does."""
        if not self.server.reactor.hasStopped:
            self.server.stop()
        self.server.threads.go_on()
        self.run_for(60.0)
        self.assertTrue(self.server.is_over())

    def test_every_step(self) -> None:
        """Starts, stops, drains and moves take the steps of the table, and no other."""
        for state in list(ServerState)[:5]:
            for drained in (False, True):
                self.reach(state)
                if drained:
                    self.server.begin("POST", "/api/v1/drain")
                    self.run_for(0.5)
                self.end()
        self.reach(ServerState.DRAINING)
        self.server.ask("DELETE", "/api/v1/drain")
        self.migrate(9999)  # in vain
        self.run_for(PROBE_SECONDS)
        self.assertIs(self.server.serving, ServerState.SERVING)
        self.migrate()
        self.assertIs(self.server.serving, ServerState.AWAY)  # but for one who is owed something
        self.server.ask("DELETE", "/api/v1/migration")
        self.assertIs(self.server.serving, ServerState.SERVING)
        self.end()
        self.reach(ServerState.AWAY)
        self.migrate()
        self.assertIs(self.server.serving, ServerState.AWAY)
        self.end()
        self.assertEqual(self.taken, set(NEXT))
