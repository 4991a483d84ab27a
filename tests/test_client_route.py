"""Tests for L{domaeka.client.route}."""

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from domaeka.client.route import Route, Server

ONE, TWO, THREE = (Server(host) for host in ("one", "two", "three"))


class ServerTests(SynchronousTestCase):
    """Tests for L{Server}."""

    def test_for_people(self) -> None:
        """It reads as people write addresses."""
        self.assertEqual(str(Server("::1", 9, tls=True)), "[::1]:9 (TLS)")
        self.assertEqual(str(ONE), "one:9000")

    def test_plausible(self) -> None:
        """What cannot be a host or a port is known."""
        for host in ("", "a b", "a/b", "a\nb", "x" * 254, "\ud800"):
            self.assertFalse(Server(host).plausible, host)
        for port in (0, -1, 65_536):
            self.assertFalse(Server("a", port).plausible)
        for host in ("::1", "10.0.0.1", "chat.example", "한글.example"):
            self.assertTrue(Server(host).plausible)


class RouteTests(SynchronousTestCase):
    """Tests for L{Route}."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.chance = 0.0
        self.route = Route([ONE, TWO], self.clock.seconds, lambda: self.chance)

    def test_next_when_it_fails(self) -> None:
        """A server that cannot be reached makes room for the next, and round again."""
        tried = []
        for _ in range(3):
            tried.append(self.route.server)
            self.route.failed()
        self.assertEqual(tried, [ONE, TWO, ONE])

    def test_preferred_first_when_lost(self) -> None:
        """After a server that greeted us is gone, the preferred one is tried first."""
        self.route.failed()
        self.route.greeted()
        self.assertTrue(self.route.may_return)
        self.route.lost()
        self.assertEqual(self.route.server, ONE)

    def test_pauses_grow(self) -> None:
        """Tries are spread more and more, and begin anew after a connection that lasted."""
        self.chance = 0.999
        delays = [round(self.route.next_delay()) for _ in range(8)]
        self.assertEqual(delays, [2, 4, 8, 8, 8, 8, 8, 8])
        self.route.greeted()
        self.clock.advance(29.0)
        self.route.lost()
        self.assertEqual(round(self.route.next_delay()), 8)
        self.route.greeted()
        self.clock.advance(30.0)
        self.route.lost()
        self.assertEqual(round(self.route.next_delay()), 2)

    def test_pauses_grow_further_where_refused(self) -> None:
        """A server that is there and refuses is left alone for up to a minute."""
        self.chance = 0.999
        route = Route([ONE], self.clock.seconds, lambda: self.chance)
        delays = []
        for _ in range(8):
            route.refused(ONE)
            delays.append(round(route.next_delay()))
            self.clock.advance(delays[-1])
        self.assertEqual(delays, [2, 4, 8, 16, 32, 60, 60, 60])
        route.failed()
        self.assertEqual(round(route.next_delay()), 8)

    def test_refusal_concerns_one_server(self) -> None:
        """While one server refuses, another is tried as soon as if the first were not there."""
        self.chance = 0.999
        for _ in range(4):
            self.route.refused(ONE)
        self.route.failed()
        self.assertEqual((round(self.route.next_delay()), self.route.server), (2, TWO))

    def test_stays_away(self) -> None:
        """A server that says when to come back is taken at its word, within reason."""
        route = Route([ONE], self.clock.seconds, lambda: self.chance)
        self.assertEqual(route.stay_away(71.5), 71.5)
        self.clock.advance(1.5)
        self.assertEqual(route.next_delay(), 70.0)
        self.clock.advance(70.0)
        self.assertLess(route.next_delay(), 3.0)
        self.assertEqual(route.stay_away(1e300) - 71.5, 3600.0)
        self.assertEqual(route.stay_away(-5.0), 71.5)

    def test_barred(self) -> None:
        """Where we are not wanted we come back much later, until we are greeted."""
        route = Route([ONE], self.clock.seconds, lambda: self.chance)
        route.barred(ONE)
        route.refused(ONE)
        self.assertEqual(route.next_delay(), 150.0)
        route.greeted()
        self.assertLess(route.next_delay(), 3.0)

    def test_left_alone(self) -> None:
        """While a server is to be left alone another is tried; of two, the one free first."""
        self.route.barred(ONE)
        self.assertLess(self.route.next_delay(), 2.0)
        self.assertEqual(self.route.server, TWO)
        self.assertFalse(self.route.may_return)
        self.route.stay_away(80.0)
        self.route.lost()
        self.assertEqual((self.route.next_delay(), self.route.server), (80.0, TWO))
        self.clock.advance(150.0)
        self.route.failed()
        self.route.failed()
        self.assertTrue(self.route.may_return)

    def test_no_rest_no_move(self) -> None:
        """A connection that has not lasted is left for another no sooner than it is made again."""
        self.route.greeted()
        self.clock.advance(5.0)
        self.assertEqual(self.route.move_delay(), 1.0)
        parallel = self.route.parallel(TWO)
        parallel.greeted()
        self.assertEqual(parallel.move_delay(), 2.0)
        self.clock.advance(30.0)
        self.assertEqual((parallel.server, parallel.move_delay()), (TWO, 0.0))

    def test_moved(self) -> None:
        """A server that we were sent to is preferred from then on; the others stay known."""
        self.route.failed()
        self.route.moved(THREE, at=40.0)
        self.assertEqual(self.route.servers, (THREE, ONE, TWO))
        self.assertEqual((self.route.server, self.route.next_delay()), (THREE, 40.0))
        self.route.add(Route([TWO, Server("four")], self.clock.seconds, lambda: 0.0))
        self.assertEqual(self.route.servers, (THREE, ONE, TWO, Server("four")))
