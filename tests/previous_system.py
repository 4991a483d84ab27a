"""Invented data in tables such as the previous system's, with all their oddities."""

import hashlib
from datetime import datetime, timedelta
from random import Random
from typing import Any

from sqlalchemy import (
    TIMESTAMP,
    Column,
    DateTime,
    Engine,
    Enum,
    Integer,
    MetaData,
    SmallInteger,
    String,
    Table,
    Text,
)

#: Local time of the previous server, as all its rows are but C{created_at} of lines.
END = datetime(2025, 9, 30, 23, 59, 59)
SEOUL = timedelta(hours=9)
STATUSES = ("pending", "approved", "denied", "revoked", "blocked")
_MIX = ("approved",) * 6 + ("pending", "denied", "revoked", "blocked")
_WORDS = (
    "안녕하세요",
    "네",
    "감사합니다",
    "딸기",
    "두 박스",
    "주문",
    "언제 도착해요",
    "ㅋㅋㅋ",
    "👍",
    "🙏",
)
_BOTS = ("가게봇", "도매봇", "Shop.i")

METADATA = MetaData()


def _table(name: str, *columns: Column[Any]) -> Table:
    options: dict[str, Any] = {"mysql_charset": "utf8mb4", "mysql_engine": "InnoDB"}
    return Table(name, METADATA, *columns, **options)


DEVICES = _table(
    "kb_bot_devices",
    Column("id", Integer, primary_key=True),
    Column("bot_name", String(30), nullable=False),
    Column("device_id", String(100), nullable=False),
    Column("ip_address", String(45)),
    Column("client_type", String(50)),
    Column("client_version", String(20)),
    Column("status", Enum(*STATUSES), nullable=False),
    Column("descryption", Text),
    Column("max_message_size", Integer),
    Column("created_at", DateTime, nullable=False),
    Column("updated_at", DateTime),
)
ROOMS = _table(
    "kb_rooms",
    Column("room_id", String(50), primary_key=True),
    Column("bot_name", String(30), primary_key=True),
    Column("device_id", String(255), primary_key=True),
    Column("room_name", String(255), nullable=False),
    Column("room_concurrency", Integer),
    Column("status", Enum(*STATUSES), nullable=False),
    Column("log_settings", Text),
    Column("created_at", DateTime),
    Column("updated_at", DateTime),
)
LINES = _table(
    "kb_chat_logs",
    Column("id", Integer, primary_key=True),
    Column("channel_id", String(50)),
    Column("user_hash", String(100)),
    Column("room_name", String(255)),
    Column("sender", String(100)),
    Column("message", Text),
    Column("message_type", String(20)),
    Column("bot_name", String(30)),
    Column("is_group_chat", SmallInteger),
    Column("log_id", String(50)),
    Column("client_timestamp", DateTime),
    Column("server_timestamp", DateTime),
    Column("is_bot", SmallInteger),
    Column("is_our_bot_response", SmallInteger),
    Column("created_at", TIMESTAMP, nullable=True),
)
#: Changes to single lines, each an oddity.
_ODD_LINES: tuple[dict[str, Any], ...] = (
    {"channel_id": ""},
    {"user_hash": ""},
    {"log_id": ""},
    {"log_id": None},
    {"sender": None},
    {"room_name": None},
    {"message": ""},
    {"message": None},
    {"server_timestamp": None},
    {"server_timestamp": None, "client_timestamp": None},
    {"server_timestamp": None, "client_timestamp": None, "created_at": None},
    {"message": "가" * 21_845},
    {"message": "'\\\"; DROP TABLE x; -- %s"},
    {"message": "👨‍👩‍👧‍👦" * 500},
    {"is_bot": 1, "sender": "가게봇"},
    {"is_our_bot_response": 1, "sender": "가게봇"},
    {"message": "끝에 빈칸   "},
    {"message": "줄\r\n바꿈\t탭"},
)


class PreviousSystem:
    """
    Rows of all three tables.

    @ivar devices: a phone under two bots, one device twice, and two whose names differ by case.
    @ivar rooms: some on two phones, and ids with a bot's name behind them.
    @ivar lines: in their order; each fortieth was written by two phones.
    """

    def __init__(self, lines: int, seed: int = 7) -> None:
        self._random = Random(seed)
        self.devices = self._make_devices()
        self.rooms = self._make_rooms()
        self.lines = self._make_lines(lines)

    def fill(self, engine: Engine) -> None:
        """Make the tables, and write the rows."""
        METADATA.create_all(engine)
        with engine.begin() as connection:
            if engine.dialect.name != "sqlite":
                connection.exec_driver_sql("SET time_zone = '+00:00'")
            for table, rows in ((DEVICES, self.devices), (ROOMS, self.rooms), (LINES, self.lines)):
                for start in range(0, len(rows), 1000):
                    connection.execute(table.insert(), rows[start : start + 1000])

    def _make_devices(self) -> list[dict[str, Any]]:
        random = self._random
        rows: list[dict[str, Any]] = []
        for number in range(14):
            made = END - timedelta(days=random.randrange(30, 90), seconds=random.randrange(86_400))
            row = {
                "bot_name": _BOTS[number % 3],
                "device_id": f"{random.getrandbits(64):016x}",
                "ip_address": random.choice([f"192.168.1.{number}", "unknown", None]),
                "client_type": "MessengerBotR",
                "client_version": random.choice(["3.2.1", "3.3.3", ""]),
                "status": _MIX[number % len(_MIX)],
                "descryption": random.choice([None, "매장 태블릿"]),
                "max_message_size": 1_048_576,
                "created_at": made,
                "updated_at": random.choice([None, END]),
            }
            rows.append(row)
        rows.append({**rows[0], "bot_name": "테스트봇", "status": "pending"})
        rows.append({**rows[0], "status": "denied"})
        rows.append({**rows[2], "bot_name": "shop.i", "device_id": rows[2]["device_id"].upper()})
        return rows

    def _make_rooms(self) -> list[dict[str, Any]]:
        random = self._random
        rows = []
        for number in range(60):
            channel = str(random.randrange(10**16, 2 * 10**18))
            made = END - timedelta(days=random.randrange(1, 60))
            for at in {number % 14, (number + 3) % 14} if number % 5 == 0 else {number % 14}:
                row = {
                    "room_id": channel,
                    "bot_name": self.devices[number % 14]["bot_name"],
                    "device_id": self.devices[at]["device_id"],
                    "room_name": f"{random.choice(['과일 도매', '동네 장터'])} {number}호점 🍓",
                    "room_concurrency": random.choice([1, 2]),
                    "status": random.choice(_MIX),
                    "log_settings": random.choice([None, "{", '{"enabled":false}']),
                    "created_at": made,
                    "updated_at": made + timedelta(hours=at),
                }
                rows.append(row)
        rows.append({**rows[0], "room_id": f"1844_{rows[0]['bot_name']}"})
        rows.append({**rows[0], "room_id": "1844_Somebody"})
        rows.append({**rows[0], "room_id": "test", "device_id": "test_device_001"})
        return rows

    def _make_lines(self, count: int) -> list[dict[str, Any]]:
        random = self._random
        rows: list[dict[str, Any]] = []
        log_id = 3_600_000_000_000_000_000
        while len(rows) < count:
            number = len(rows)
            at = (END - timedelta(days=75) * (1 - number / count)).replace(microsecond=0)
            room = random.choice(self.rooms[:60])
            log_id += random.randrange(1, 10**6)
            who = random.randrange(400)
            row = {
                "channel_id": room["room_id"],
                "user_hash": hashlib.sha256(str(who).encode()).hexdigest(),
                "room_name": room["room_name"],
                "sender": f"손님{who}",
                "message": " ".join(random.choices(_WORDS, k=random.randrange(1, 14))),
                "message_type": "text",
                "bot_name": room["bot_name"],
                "is_group_chat": int(len(room["room_id"]) != 17),
                "log_id": str(log_id),
                "client_timestamp": at,
                "server_timestamp": at,
                "is_bot": 0,
                "is_our_bot_response": 0,
                "created_at": at - SEOUL,
            }
            rows.append(row)
            if number % 40 == 7:
                rows.append({**row, "server_timestamp": at + timedelta(seconds=1)})
        del rows[count:]
        for number, change in enumerate(_ODD_LINES):
            rows[100 + 15 * number].update(change)
        for number, row in enumerate(rows, 1):
            row["id"] = number
        return rows
