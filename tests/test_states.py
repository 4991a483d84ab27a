"""Tests for L{domaeka.gateway.conversation.states}: what may follow what."""

from domaeka.errors import ErrorCode
from domaeka.gateway.conversation.states import NEXT
from domaeka.gateway.peer import State
from domaeka.wire import (
    Ack,
    Auth,
    Chat,
    DeliveryReport,
    Handshake,
    Migrated,
    Pong,
    Probe,
    encode_frame,
)
from tests.gateway_case import GatewayCase, Peer

JUNK = b'{"event":"nonsense"}\n'


class TransitionTests(GatewayCase):
    """Tests for L{NEXT}."""

    def in_state(self, state: State) -> Peer:
        """A peer whose conversation has come so far."""
        if state is State.GREETED:
            return self.greeted()
        if state is State.READY:
            return self.ready()
        peer = self.connect()
        if state is State.KNOWN:
            peer.chat("nothing")
        return peer

    def say(self, peer: Peer, message: type) -> None:
        """Have C{peer} say a message of a type, all in order with it."""
        if message is Handshake:
            peer.handshake()
        elif message is Chat:
            peer.chat("nothing")
        elif message is Pong:
            peer.pong()
        elif message is Ack:
            peer.ack(0)
        elif message is Probe:
            peer.write(encode_frame("probe", Probe()))
        elif message is DeliveryReport:
            peer.write(encode_frame("delivery", DeliveryReport(0, True)))
        else:
            peer.write(encode_frame("migrated", Migrated("sibling", 9000)))

    def test_every_pair(self) -> None:
        """Each message leads where the table says; what is not in it changes nothing."""
        messages = (Handshake, Chat, Pong, Ack, DeliveryReport, Probe, Migrated)
        for number, state in enumerate([*State][:-1]):
            for message in messages:
                self.serve()
                peer = self.in_state(state)
                session = self.conversation()
                self.assertIs(session.peer.state, state)
                peer.take()
                self.say(peer, message)
                expected = NEXT.get((state, message))
                if (state, message) == (State.NEW, Pong):
                    expected = None  # it was asked for nothing
                if session.peer.closing:
                    self.assertEqual((state, message), (State.READY, Migrated))
                    continue  # it has said goodbye
                self.assertIs(session.peer.state, expected or state, (state, message))
                codes = [] if expected else [ErrorCode.AUTH_REQUIRED]
                if state is State.READY and message in (Ack, DeliveryReport):
                    codes = [ErrorCode.BAD_FRAME]  # for nobody asked for it
                self.assertEqual(peer.errors, codes, (number, state, message))

    def test_proof_in_a_handshake(self) -> None:
        """C{auth} in the handshake leads from greeted to ready."""
        self.assertIs(NEXT[State.GREETED, Auth], State.READY)
        self.client()
        self.assertIs(self.conversation().peer.state, State.READY)

    def test_nothing_leads_out_of_closing(self) -> None:
        """What arrives while the connection closes is not looked at."""
        peer = self.ready()
        peer.polite = False
        peer.handshake(bare=False)
        session = self.conversation()
        session.close("shutdown")
        self.run_for(0.0)
        peer.take()
        peer.write(JUNK, peer.line("말"))
        self.assertIs(session.peer.state, State.CLOSING)
        self.assertEqual((peer.frames, self.bots.submitted), ([], []))
