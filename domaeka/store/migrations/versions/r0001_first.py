"""
The first tables.

Where a statement cannot be taken back (MariaDB), a migration that was cut short is done again:
tables that are there are left alone.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

revision = "0001"
down_revision = None

_KEY = sa.String(64)
_NAME = sa.String(128)
_TITLE = sa.String(1000)
_ROW_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_LONG_TEXT = sa.Text().with_variant(mysql.LONGTEXT(), "mysql", "mariadb")
_PART = sa.LargeBinary().with_variant(mysql.MEDIUMBLOB(), "mysql", "mariadb")


def _create(name: str, *columns: sa.Column[object]) -> None:
    op.create_table(
        name, *columns, if_not_exists=True, mysql_charset="utf8mb4", mariadb_charset="utf8mb4"
    )


def upgrade() -> None:
    """Make the tables."""
    _create(
        "devices",
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
    _create(
        "rooms",
        sa.Column("room_key", _KEY, primary_key=True),
        sa.Column("bot_name", _NAME, nullable=False),
        sa.Column("room_id", _TITLE, nullable=False),
        sa.Column("name", _TITLE, nullable=False),
        sa.Column("is_group", sa.Boolean(), nullable=False),
        sa.Column("approval", _NAME, nullable=False),
        sa.Column("device_id", _NAME),
        sa.Column("last_heard", sa.BigInteger()),
    )
    _create(
        "chat_lines",
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
    _create(
        "sessions",
        sa.Column("device_key", _KEY, primary_key=True),
        sa.Column("bot_name", _NAME, nullable=False),
        sa.Column("device_id", _NAME, nullable=False),
        sa.Column("newest_hash", _KEY, nullable=False),
        sa.Column("older_hash", _KEY),
        sa.Column("expires", sa.BigInteger(), nullable=False),
    )
    _create(
        "mailbox",
        sa.Column("node_key", _KEY, primary_key=True),
        sa.Column("device_key", _KEY, primary_key=True),
        sa.Column("part", sa.Integer(), primary_key=True, autoincrement=False),
        sa.Column("bot_name", _NAME, nullable=False),
        sa.Column("device_id", _NAME, nullable=False),
        sa.Column("data", _PART, nullable=False),
    )
    _create(
        "bans",
        sa.Column("network", _KEY, primary_key=True),
        sa.Column("reason", _TITLE, nullable=False),
        sa.Column("made_at", sa.BigInteger(), nullable=False),
        sa.Column("expires", sa.BigInteger()),
        sa.Column("times", sa.Integer(), nullable=False),
        sa.Column("made_by", _NAME, nullable=False),
    )


def downgrade() -> None:
    """Remove the tables."""
    for name in ("bans", "mailbox", "sessions", "chat_lines", "rooms", "devices"):
        op.drop_table(name)
