"""Devices and rooms know if an operator has decided on them: others give way in a full table."""

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"


def upgrade() -> None:
    """Add the columns, unless a migration that was cut short has."""
    for table in ("domaeka_devices", "domaeka_rooms"):
        there = {column["name"] for column in sa.inspect(op.get_bind()).get_columns(table)}
        if "decided" not in there:
            op.add_column(
                table, sa.Column("decided", sa.Boolean, nullable=False, server_default=sa.false())
            )
