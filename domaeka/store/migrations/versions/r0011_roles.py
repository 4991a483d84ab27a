"""Roles that people hold."""

import sqlalchemy as sa

from domaeka.store.migrations.tables import create

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    """Make the table."""
    create(
        "domaeka_roles",
        sa.Column("role_key", sa.String(64), primary_key=True),
        sa.Column("role", sa.String(128), nullable=False),
        sa.Column("channel_id", sa.String(128), nullable=False),
        sa.Column("user_hash", sa.String(128), nullable=False),
        sa.Column("granted_at", sa.BigInteger, nullable=False),
    )
