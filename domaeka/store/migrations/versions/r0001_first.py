"""The first tables; those of a former version had the names without C{domaeka_}."""

import sqlalchemy as sa
from sqlalchemy.dialects import mysql

from domaeka.store.migrations.tables import create

revision = "0001"
down_revision = None

_KEY = sa.String(64)
_NAME = sa.String(128)
_TITLE = sa.String(1000)
_ROW_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_LONG_TEXT = sa.Text().with_variant(mysql.LONGTEXT(), "mysql", "mariadb")
_PART = sa.LargeBinary().with_variant(mysql.MEDIUMBLOB(), "mysql", "mariadb")


def upgrade() -> None:
    """Make the tables."""
    create(
        "domaeka_devices",
        sa.Column("device_key", _KEY, primary_key=True),
        sa.Column("bot_name", _NAME, nullable=False),
        sa.Column("device_id", _NAME, nullable=False),
        sa.Column("approval", _NAME, nullable=False),
        sa.Column("first_seen", sa.BigInteger()),
        sa.Column("last_seen", sa.BigInteger()),
        sa.Column("version", _NAME, nullable=False),
        sa.Column("client_type", _NAME, nullable=False),
        sa.Column("device_ip", _NAME, nullable=False),
        sa.Column("device_info", _TITLE, nullable=False),
        sa.Column("address", _NAME, nullable=False),
    )
    create(
        "domaeka_rooms",
        sa.Column("room_key", _KEY, primary_key=True),
        sa.Column("bot_name", _NAME, nullable=False),
        sa.Column("room_id", _TITLE, nullable=False),
        sa.Column("name", _TITLE, nullable=False),
        sa.Column("is_group", sa.Boolean(), nullable=False),
        sa.Column("approval", _NAME, nullable=False),
        sa.Column("device_id", _NAME),
        sa.Column("last_heard", sa.BigInteger()),
    )
    create(
        "domaeka_chat_lines",
        sa.Column("id", _ROW_ID, primary_key=True, autoincrement=True),
        sa.Column("time", sa.BigInteger(), nullable=False),
        sa.Column("direction", sa.String(3), nullable=False),
        sa.Column("bot_name", _NAME, nullable=False),
        sa.Column("device_id", _NAME, nullable=False),
        sa.Column("room_id", _TITLE, nullable=False),
        sa.Column("room_name", _TITLE, nullable=False),
        sa.Column("sender", _TITLE, nullable=False),
        sa.Column("user_hash", _NAME),
        sa.Column("log_id", _NAME),
        sa.Column("text", _LONG_TEXT, nullable=False),
    )
    create(
        "domaeka_sessions",
        sa.Column("device_key", _KEY, primary_key=True),
        sa.Column("bot_name", _NAME, nullable=False),
        sa.Column("device_id", _NAME, nullable=False),
        sa.Column("newest_hash", _KEY, nullable=False),
        sa.Column("older_hash", _KEY),
        sa.Column("expires", sa.BigInteger(), nullable=False),
    )
    create(
        "domaeka_mailbox",
        sa.Column("node_key", _KEY, primary_key=True),
        sa.Column("device_key", _KEY, primary_key=True),
        sa.Column("part", sa.Integer(), primary_key=True, autoincrement=False),
        sa.Column("bot_name", _NAME, nullable=False),
        sa.Column("device_id", _NAME, nullable=False),
        sa.Column("data", _PART, nullable=False),
    )
    create(
        "domaeka_bans",
        sa.Column("network", _KEY, primary_key=True),
        sa.Column("reason", _TITLE, nullable=False),
        sa.Column("made_at", sa.BigInteger(), nullable=False),
        sa.Column("expires", sa.BigInteger()),
        sa.Column("times", sa.Integer(), nullable=False),
        sa.Column("made_by", _NAME, nullable=False),
    )
