"""Values of bots, and the sums of each bot."""

import sqlalchemy as sa
from sqlalchemy.dialects import mysql

from domaeka.store.migrations.tables import create

revision = "0010"
down_revision = "0009"

_NAME = sa.LargeBinary(800).with_variant(mysql.VARBINARY(800), "mysql", "mariadb")
_LONG_TEXT = sa.Text().with_variant(mysql.LONGTEXT(), "mysql", "mariadb")


def upgrade() -> None:
    """Make the tables."""
    create(
        "domaeka_bot_values",
        sa.Column("scope_key", sa.String(64), primary_key=True),
        sa.Column("name", _NAME, primary_key=True),
        sa.Column("bot", sa.String(128), nullable=False),
        sa.Column("scope", sa.String(1000), nullable=False),
        sa.Column("value", _LONG_TEXT, nullable=False),
        sa.Column("bytes", sa.Integer, nullable=False),
    )
    create(
        "domaeka_bot_sums",
        sa.Column("bot_key", sa.String(64), primary_key=True),
        sa.Column("bot", sa.String(128), nullable=False),
        sa.Column("number", sa.BigInteger, nullable=False),
        sa.Column("bytes", sa.BigInteger, nullable=False),
    )
