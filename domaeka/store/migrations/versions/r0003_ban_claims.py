"""Bans keep the names that the banned phone claimed; those of older bans are empty."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

_COLUMNS = ("claimed_bot", "claimed_device")


def upgrade() -> None:
    """Add the columns, unless a migration that was cut short has."""
    there = {column["name"] for column in sa.inspect(op.get_bind()).get_columns("domaeka_bans")}
    for name in _COLUMNS:
        if name not in there:
            op.add_column(
                "domaeka_bans", sa.Column(name, sa.String(128), nullable=False, server_default="")
            )
