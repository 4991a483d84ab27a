"""
Session tokens know the key by which they were gained.

Those that do not are worth nothing: their devices prove themselves anew.
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Add the column, unless a migration that was cut short has."""
    connection = op.get_bind()
    if "key_id" not in {
        column["name"] for column in sa.inspect(connection).get_columns("sessions")
    }:
        op.add_column(
            "sessions", sa.Column("key_id", sa.String(64), nullable=False, server_default="")
        )
    op.execute(sa.table("sessions").delete())


def downgrade() -> None:
    """Remove the column."""
    op.drop_column("sessions", "key_id")
