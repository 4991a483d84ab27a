"""Places of connections are shared: nobody keeps an innocent phone out."""

from domaeka.pools import Pool
from tests.fairness import FairCase
from tests.gateway_case import GatewayCase


class StrangersTests(GatewayCase, FairCase):
    """Connections that prove nothing, in a server that is full."""

    pools = (Pool.PLACES,)

    def test_the_phone_is_let_in(self) -> None:
        """The oldest of them gives way to the phone; the log names its address."""
        self.serve(("server.max_connections", "3"))
        for _ in range(3):
            self.greeted()
        phone = self.ready()
        phone.chat("말")
        self.assertEqual(phone.texts, ["말"])
        self.assert_gave_way(self.metrics, Pool.PLACES)
