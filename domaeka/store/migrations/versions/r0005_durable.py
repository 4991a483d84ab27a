"""Durable delivery: the outboxes of clients that acknowledge, and what they have said."""

import sqlalchemy as sa
from sqlalchemy.dialects import mysql

from domaeka.store.migrations.tables import create

revision = "0005"
down_revision = "0004"

_BYTES = sa.LargeBinary().with_variant(mysql.MEDIUMBLOB(), "mysql", "mariadb")


def _number(name: str) -> "sa.Column[int]":
    return sa.Column(name, sa.BigInteger, primary_key=True, autoincrement=False)


def upgrade() -> None:
    """Make the tables."""
    create(
        "domaeka_outboxes",
        _number("outbox"),
        sa.Column("node_key", sa.String(64), nullable=False),
        sa.Column("bot_name", sa.String(128), nullable=False),
        sa.Column("device_id", sa.String(128), nullable=False),
        sa.Column("epoch", sa.String(128), nullable=False),
        sa.Column("next_number", sa.BigInteger, nullable=False),
        sqlite_with_rowid=False,
    )
    create(
        "domaeka_outgoing",
        _number("outbox"),
        _number("record"),
        sa.Column("part", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("number", sa.BigInteger, nullable=False),
        sa.Column("expires", sa.BigInteger, nullable=False),
        sa.Column("data", _BYTES, nullable=False),
        sqlite_with_rowid=False,
    )
    create(
        "domaeka_taken",
        _number("outbox"),
        _number("record"),
        sa.Column("client_id", sa.String(128), nullable=False),
        sa.Column("answers", sa.Integer, nullable=False),
        sa.Column("body", _BYTES),
        sqlite_with_rowid=False,
    )
