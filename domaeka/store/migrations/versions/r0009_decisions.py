"""Decisions of each server, for the others on the store."""

import sqlalchemy as sa

from domaeka.store.migrations.tables import create

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    """Make the table."""
    create(
        "domaeka_decisions",
        sa.Column("number", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("node_key", sa.String(64), nullable=False),
        sa.Column("kind", sa.String(128), nullable=False),
        sa.Column("bot_name", sa.String(128), nullable=False),
        sa.Column("name", sa.String(1000), nullable=False),
    )
