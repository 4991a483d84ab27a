"""
Session tokens keep the id of the key by which they were gained.

Older tokens are removed: their devices sign again.
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Add the column, unless a migration that was cut short has."""
    connection = op.get_bind()
    if "key_id" not in {
        column["name"] for column in sa.inspect(connection).get_columns("domaeka_sessions")
    }:
        op.add_column(
            "domaeka_sessions",
            sa.Column("key_id", sa.String(64), nullable=False, server_default=""),
        )
    op.execute(sa.table("domaeka_sessions").delete())
