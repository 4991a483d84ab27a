"""Tests for L{domaeka.store.devices}."""

import msgspec
from twisted.logger import capturedLogs, formatEvent

from domaeka.errors import StoreError
from domaeka.interfaces import REFUSED, Approval, DeviceFacts, DeviceKey
from domaeka.policies.auth import NO_KEY
from domaeka.policies.last_seen import EXPECTED_SECONDS
from domaeka.policies.networks import address_key
from domaeka.store.background import RETRY_SECONDS
from domaeka.store.columns import key_hash
from domaeka.store.devices import (
    DEVICES,
    HEARD_SECONDS,
    MAX_PENDING,
    SEEN_SECONDS,
    WRITE_SECONDS,
    StoredDevices,
)
from domaeka.store.sessions import StoredSessions
from tests.storing import StoreTestCase

#: Of the phones.
ADDRESS = "192.0.2.1"
PHONE = DeviceKey("봇", "a1")
FACTS = DeviceFacts(version="3.3.3", device_ip="10.0.0.1", address="10.0.0.1:5")


class DevicesTestCase(StoreTestCase):
    """Has devices on a store that is not started yet."""

    def setUp(self) -> None:
        super().setUp()
        self.devices = StoredDevices(self.database, self.clock, wall=self.wall)
        self.told: list[tuple[DeviceKey, Approval]] = []
        self.devices.add_listener(lambda key, approval: self.told.append((key, approval)))

    def again(self) -> StoredDevices:
        """The devices as another start finds them: the same store, nothing in memory."""
        devices = StoredDevices(self.database, self.clock, wall=self.wall)
        devices._load(self.successResultOf(self.database.run_read(devices._read)))
        return devices

    def decide(self, key: DeviceKey, approval: Approval) -> None:
        """An operator says so."""
        self.successResultOf(self.devices.set_approval(key, approval))


class LastSeenTests(DevicesTestCase):
    """Where devices were last seen."""

    def setUp(self) -> None:
        super().setUp()
        self.facts = DeviceFacts(version="3.3.3", address="192.0.2.1")

    def count(self, devices: StoredDevices, address: str = "192.0.2.1") -> int:
        """Number of devices expected at an address."""
        key = address_key(address)
        assert key is not None
        return devices.last_seen.count(key)

    def test_over_a_restart(self) -> None:
        """They are known at the next start, the one seen longest ago as such."""
        self.start()
        for device in ("b", "c", "a"):
            self.devices.enter(DeviceKey("봇", device), self.facts)
            self.clock.advance(86_400.0)
        self.assertEqual(self.count(self.devices), 3)
        again = self.again()
        self.assertEqual(self.count(again), 3)
        self.clock.advance(EXPECTED_SECONDS - 3 * 86_400.0 + 1.0)
        self.assertEqual((self.count(self.devices), self.count(again)), (2, 2))

    def test_kept_up(self) -> None:
        """A device that moves counts at its new address; one that is heard counts on."""
        self.start()
        self.devices.enter(PHONE, self.facts)
        moved = msgspec.structs.replace(self.facts, address="2001:db8::1")
        self.devices.enter(PHONE, moved)
        self.assertEqual(self.count(self.devices), 0)
        self.assertEqual(self.count(self.devices, "2001:db8::2"), 1)
        self.clock.advance(EXPECTED_SECONDS)
        self.devices.heard(PHONE)
        self.clock.advance(EXPECTED_SECONDS)
        self.assertEqual(self.count(self.devices, "2001:db8::2"), 1)

    def test_refused_or_forgotten(self) -> None:
        """An operator's refusal ends it, and so does forgetting; approval brings it back."""
        self.start()
        self.devices.enter(PHONE, self.facts)
        self.decide(PHONE, Approval.BLOCKED)
        self.devices.enter(PHONE, self.facts)
        self.assertEqual((self.count(self.devices), self.count(self.again())), (0, 0))
        self.decide(PHONE, Approval.APPROVED)
        self.assertEqual(self.count(self.devices), 1)
        self.devices.forget(PHONE)
        self.assertEqual(self.count(self.devices), 0)

    def test_entered_by_an_operator(self) -> None:
        """A device that was never heard is expected nowhere."""
        self.start()
        self.decide(PHONE, Approval.APPROVED)
        self.assertEqual(len(self.devices.last_seen), 0)


class EnterTests(DevicesTestCase):
    """Tests for L{StoredDevices.enter}."""

    def test_nobody_is_approved_before_the_store_has_spoken(self) -> None:
        """Until the store is read nobody is approved, and nobody entered."""
        self.assertIsNone(self.devices.enter(PHONE, FACTS))
        self.assertIsNone(self.devices.approval(PHONE))
        self.start()
        self.assertIsNone(self.devices.approval(PHONE))
        self.assertIs(self.devices.enter(PHONE, FACTS), Approval.APPROVED)

    def test_signature_approves_at_once(self) -> None:
        """A new device is approved at its first signature, and is after a restart."""
        self.start()
        self.assertIs(self.devices.enter(PHONE, FACTS), Approval.APPROVED)
        self.clock.advance(WRITE_SECONDS)
        record = self.again().record(PHONE)
        assert record is not None
        self.assertEqual((record.approval, record.facts), (Approval.APPROVED, FACTS))
        self.assertEqual(record.first_seen, 1_790_000_000.0)

    def test_manual_devices_wait(self) -> None:
        """
        Where an operator approves, a new device is pending, and so many at most; none that is
        connected gives way.
        """
        self.devices.mode = "manual"
        self.start()
        for number in range(MAX_PENDING):
            facts = msgspec.structs.replace(FACTS, address=f"192.0.2.{number // 10}")
            key = DeviceKey("bot", str(number))
            self.assertIs(self.devices.enter(key, facts), Approval.PENDING)
        self.assertIsNone(self.devices.enter(PHONE, FACTS))
        self.decide(DeviceKey("bot", "0"), Approval.DENIED)
        self.assertIs(self.devices.enter(PHONE, FACTS), Approval.PENDING)

    def test_clock(self) -> None:
        """The lead of a device's clock is known after a restart, and whatever else is renewed."""
        self.start()
        self.devices.clock_measured(PHONE, 5.0)
        self.assertIsNone(self.devices.clock_lead(PHONE))  # its signature has not held
        self.devices.enter(PHONE, FACTS)
        self.assertIsNone(self.devices.clock_lead(PHONE))
        for lead, kept in ((-12.5, -12.5), (-12.3, -12.5), (100.0, 100.0)):
            self.devices.clock_measured(PHONE, lead)
            self.assertEqual(self.devices.clock_lead(PHONE), kept)
            self.clock.advance(WRITE_SECONDS)
            self.devices.enter(PHONE, msgspec.structs.replace(FACTS, version=f"{lead}"))
            self.clock.advance(WRITE_SECONDS)
            self.assertEqual(self.again().clock_lead(PHONE), kept)

    def test_signature_approves_what_waited(self) -> None:
        """After a change to C{signed} a pending device is approved by its next signature."""
        self.devices.mode = "manual"
        self.start()
        self.devices.enter(PHONE, FACTS)
        self.clock.advance(WRITE_SECONDS)
        self.devices.mode = "signed"
        self.assertIs(self.devices.enter(PHONE, FACTS), Approval.APPROVED)
        self.clock.advance(WRITE_SECONDS)
        self.assertIs(self.again().approval(PHONE), Approval.APPROVED)

    def test_refused_devices_stay_refused(self) -> None:
        """What an operator refused is approved by no signature, now or after a restart."""
        self.start()
        for number, approval in enumerate(REFUSED):
            key = DeviceKey("bot", str(number))
            self.decide(key, approval)
            self.assertIs(self.devices.enter(key, FACTS), approval)
            self.clock.advance(WRITE_SECONDS)
            self.assertIs(self.again().enter(key, FACTS), approval)

    def test_store_in_trouble(self) -> None:
        """While the store fails new devices are approved at once, and refused ones are not."""
        self.start()
        self.decide(PHONE, Approval.BLOCKED)
        self.break_store()
        stranger = DeviceKey("bot", "new")
        self.assertIs(self.devices.enter(stranger, FACTS), Approval.APPROVED)
        self.assertIs(self.devices.enter(PHONE, FACTS), Approval.BLOCKED)
        self.clock.advance(WRITE_SECONDS)
        self.break_store(False)
        self.clock.advance(RETRY_SECONDS)
        again = self.again()
        self.assertEqual(
            (again.approval(stranger), again.approval(PHONE)),
            (Approval.APPROVED, Approval.BLOCKED),
        )

    def damage(self, **values: object) -> None:
        """Have the row of L{PHONE} hold something else than we write."""
        damage = DEVICES.update().values(**values).where(DEVICES.c.device_id == PHONE.device_id)
        self.successResultOf(self.database.run_write(lambda c: c.execute(damage) and None))

    def test_damaged_row(self) -> None:
        """A row that cannot be read is told of once, and its device waits for an operator."""
        self.start()
        other = DeviceKey("봇", "a2")
        for key in (PHONE, other):
            self.devices.enter(key, FACTS)
        self.clock.advance(WRITE_SECONDS)
        self.damage(approval="blokced")
        with capturedLogs() as events:
            again = self.again()
        (warning,) = (formatEvent(event) for event in events)
        self.assertIn("devices: 1 rows of the store are damaged", warning)
        self.assertIn(f"domaeka_devices.device_key = {key_hash(*PHONE)!r}", warning)
        self.assertIn("'blokced' is not a valid Approval", warning)
        self.assertIs(again.enter(other, FACTS), Approval.APPROVED)
        for ask in (lambda: again.enter(PHONE, FACTS), lambda: again.approval(PHONE)):
            self.assertIs(ask(), Approval.PENDING)
        self.assertIsNone(again.record(PHONE))

    def test_damaged_row_is_mended(self) -> None:
        """An operator's decision makes the row whole; so does forgetting the device then."""
        self.start()
        self.devices.enter(PHONE, FACTS)
        self.clock.advance(WRITE_SECONDS)
        self.damage(approval="?", bot_name="other")
        again = self.again()
        self.successResultOf(again.set_approval(PHONE, Approval.DENIED))
        self.assertIs(self.again().approval(PHONE), Approval.DENIED)
        self.successResultOf(again.forget(PHONE))
        self.assertIs(again.enter(PHONE, FACTS), Approval.APPROVED)

    def test_names_that_look_alike_are_two(self) -> None:
        """Case and blanks tell devices apart, in the store too."""
        self.start()
        keys = [DeviceKey("Bot", "x"), DeviceKey("bot", "x"), DeviceKey("bot", "x ")]
        for key in keys:
            self.devices.enter(key, FACTS)
        self.clock.advance(WRITE_SECONDS)
        self.assertEqual([record.key for record in self.again().page(None, 9)], sorted(keys))

    def test_facts_fit_whatever_is_said(self) -> None:
        """What is too long, or no database takes, is cut and replaced."""
        self.start()
        hostile = DeviceFacts("v" * 9999, "\0", "\ud800", "길" * 9999, "a")
        self.devices.enter(PHONE, hostile)
        self.clock.advance(WRITE_SECONDS)
        (row,) = self.rows(DEVICES)
        self.assertEqual((len(row["version"]), len(row["device_info"])), (128, 1000))
        self.assertEqual((row["client_type"], row["device_ip"]), ("\ufffd", "?"))


class WriteTests(DevicesTestCase):
    """Tests for what is written of devices, and when."""

    def setUp(self) -> None:
        super().setUp()
        self.start()

    def test_unchanged_device_is_written_once_a_minute(self) -> None:
        """A device that is entered again and again costs the store next to nothing."""
        for _ in range(10):
            self.devices.enter(PHONE, FACTS)
        self.clock.advance(WRITE_SECONDS)
        writes = len(self.write_times)
        for _ in range(10):
            self.devices.enter(PHONE, FACTS)
            self.clock.advance(SEEN_SECONDS / 20)
        self.assertEqual(len(self.write_times), writes)
        self.clock.advance(SEEN_SECONDS)
        self.devices.enter(PHONE, FACTS)
        self.clock.advance(WRITE_SECONDS)
        (row,) = self.rows(DEVICES)
        self.assertGreater(row["last_seen"], row["first_seen"])

    def test_failed_write_is_made_up_for(self) -> None:
        """What could not be written is written once the store is back, the latest only."""
        self.devices.enter(PHONE, FACTS)
        self.break_store()
        self.clock.advance(WRITE_SECONDS)
        self.devices.enter(PHONE, DeviceFacts(version="3.3.4"))
        self.break_store(False)
        self.clock.advance(RETRY_SECONDS)
        self.assertEqual([row["version"] for row in self.rows(DEVICES)], ["3.3.4"])

    def test_stop_writes_what_waits(self) -> None:
        """A device that has just been entered survives an orderly stop."""
        self.devices.enter(PHONE, FACTS)
        stopping = self.devices.stop()
        self.clock.advance(0)
        self.successResultOf(stopping)
        self.assertEqual(len(self.rows(DEVICES)), 1)
        self.stopped()


class DecisionTests(DevicesTestCase):
    """Tests for L{StoredDevices.set_approval} and what operators see."""

    def test_decision_is_stored_before_it_is_in_force(self) -> None:
        """Nothing changes, and nobody is told, until the store has it."""
        self.start()
        self.devices.enter(PHONE, FACTS)
        self.thread.stuck = True
        deciding = self.devices.set_approval(PHONE, Approval.BLOCKED)
        self.assertIs(self.devices.approval(PHONE), Approval.APPROVED)
        self.assertEqual(self.told, [])
        self.thread.go_on()
        self.successResultOf(deciding)
        self.assertIs(self.devices.approval(PHONE), Approval.BLOCKED)
        self.assertEqual(self.told, [(PHONE, Approval.BLOCKED)])

    def test_failed_decision_changes_nothing(self) -> None:
        """An operator whose decision could not be stored is told so."""
        self.start()
        self.devices.enter(PHONE, FACTS)
        self.break_store()
        self.failureResultOf(self.devices.set_approval(PHONE, Approval.BLOCKED), StoreError)
        self.assertIs(self.devices.approval(PHONE), Approval.APPROVED)
        self.assertEqual(self.told, [])

    def test_unseen_device_may_be_decided(self) -> None:
        """A device that has not come yet can be approved or blocked."""
        self.start()
        self.decide(PHONE, Approval.BLOCKED)
        record = self.again().record(PHONE)
        assert record is not None
        self.assertEqual((record.approval, record.first_seen), (Approval.BLOCKED, None))
        self.devices.enter(PHONE, FACTS)
        self.clock.advance(WRITE_SECONDS)
        (row,) = self.rows(DEVICES)
        self.assertEqual((row["approval"], row["version"]), ("blocked", "3.3.3"))

    def test_refused_where_it_cannot_be(self) -> None:
        """Before the store is read, and for names that no device can have, nothing is decided."""
        self.failureResultOf(self.devices.set_approval(PHONE, Approval.DENIED), StoreError)
        self.start()
        for key in (DeviceKey("", "x"), DeviceKey("bot", "x" * 129), DeviceKey("bot", "\n")):
            self.failureResultOf(self.devices.set_approval(key, Approval.DENIED), StoreError)

    def test_refused_device_loses_its_session(self) -> None:
        """The token of a device dies in the very moment in which it is refused."""
        sessions = StoredSessions(self.database, self.clock, wall=self.wall)
        self.start()
        self.devices.enter(PHONE, FACTS)
        token = self.successResultOf(sessions.issue(PHONE, ADDRESS, NO_KEY))
        self.decide(PHONE, Approval.REVOKED)
        result = self.successResultOf(sessions.resume(token, PHONE, ADDRESS))
        self.assertIsNone(result.token)

    def test_pages(self) -> None:
        """Devices are listed in order, page by page, by their state if wanted."""
        self.start()
        keys = sorted(DeviceKey("bot", str(number)) for number in range(10))
        for key in reversed(keys):
            self.devices.enter(key, FACTS)
        self.decide(keys[7], Approval.BLOCKED)
        page = self.devices.page(None, 4)
        self.assertEqual([record.key for record in page], keys[:4])
        page = self.devices.page(page[-1].key, 99)
        self.assertEqual([record.key for record in page], keys[4:])
        blocked = self.devices.page(None, 99, Approval.BLOCKED)
        self.assertEqual([record.key for record in blocked], [keys[7]])

    def test_bad_listener_harms_nobody(self) -> None:
        """A listener that raises is logged, and the decision stands."""
        self.start()

        def listen(key: DeviceKey, approval: Approval) -> None:
            raise ZeroDivisionError

        self.devices.add_listener(listen)
        self.decide(PHONE, Approval.DENIED)
        self.assertIs(self.devices.approval(PHONE), Approval.DENIED)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)


class ForgettingTests(DevicesTestCase):
    """Tests for L{StoredDevices.forget} and L{StoredDevices.heard}."""

    def setUp(self) -> None:
        super().setUp()
        self.start()
        self.devices.enter(PHONE, FACTS)
        self.clock.advance(WRITE_SECONDS)

    def test_forgotten(self) -> None:
        """Neither memory nor store has it, nor the place that it took."""
        self.decide(PHONE, Approval.PENDING)
        self.successResultOf(self.devices.forget(PHONE))
        self.assertIsNone(self.devices.record(PHONE))
        self.assertEqual(self.devices.page(None, 10), [])
        self.assertEqual((self.devices._pending, self.devices._of_bot[PHONE.bot_name]), (0, 0))
        self.assertIsNone(self.again().record(PHONE))

    def test_forgotten_while_it_is_written(self) -> None:
        """What was on its way to the store does not bring it back, whether it arrives or not."""
        for fails in (False, True):
            self.devices.enter(PHONE, FACTS)
            self.thread.stuck = True
            self.clock.advance(WRITE_SECONDS)  # on its way
            forgetting = self.devices.forget(PHONE)
            if fails:
                self.fail_next_write()
            self.thread.go_on()
            self.successResultOf(forgetting)
            self.clock.advance(60.0)
            self.assertIsNone(self.devices.record(PHONE))
            self.assertIsNone(self.again().record(PHONE))

    def fail_next_write(self) -> None:
        """The first call that waits for the store fails."""
        result, _ = self.thread._calls[0]

        def broken() -> None:
            raise StoreError("broken")

        self.thread._calls[0] = (result, broken)

    def test_loses_its_session(self) -> None:
        """Its tokens die in the same transaction."""
        sessions = StoredSessions(self.database, self.clock, wall=self.wall)
        token = self.successResultOf(sessions.issue(PHONE, ADDRESS, "k"))
        self.successResultOf(self.devices.forget(PHONE))
        self.assertFalse(self.successResultOf(sessions.resume(token, PHONE, ADDRESS)).token)

    def test_failure(self) -> None:
        """Where it is not forgotten, what was about to be written is written still."""
        facts = msgspec.structs.replace(FACTS, version="3.2.1")
        self.clock.advance(100.0)
        self.devices.enter(PHONE, facts)
        self.thread.stuck = True
        forgetting = self.devices.forget(PHONE)
        self.fail_next_write()
        self.thread.go_on()
        self.failureResultOf(forgetting, StoreError)
        self.clock.advance(60.0)
        record = self.again().record(PHONE)
        assert record is not None
        self.assertEqual(record.facts.version, "3.2.1")

    def test_heard(self) -> None:
        """When it was last heard is written seldom while it is connected, and once it is not."""
        began = self.wall()
        times = len(self.write_times)
        for _ in range(40):
            self.clock.advance(30.0)
            self.devices.heard(PHONE)
        self.clock.advance(WRITE_SECONDS)
        self.assertLessEqual(len(self.write_times) - times, 1200 / HEARD_SECONDS)
        ended = self.wall() - 7.0
        self.devices.heard(PHONE, ended)
        self.clock.advance(WRITE_SECONDS)
        record = self.again().record(PHONE)
        assert record is not None and record.last_seen is not None
        self.assertEqual((record.first_seen, record.last_seen), (began - 1.0, ended))

    def test_heard_of_nobody(self) -> None:
        """What an operator has entered was not seen; one that is forgotten stays so."""
        other = DeviceKey("bot", "other")
        self.decide(other, Approval.BLOCKED)
        for key in (other, DeviceKey("bot", "nobody")):
            self.devices.heard(key, 5.0)
            record = self.devices.record(key)
            self.assertTrue(record is None or record.last_seen is None)
