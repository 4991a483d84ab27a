"""
Devices keep the lead of their clocks; session tokens keep the address to which they were issued.

Older tokens have none: beside them their devices sign.
"""

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"

_COLUMNS = (
    ("domaeka_devices", sa.Column("clock_lead", sa.BigInteger)),
    ("domaeka_sessions", sa.Column("address_hash", sa.String(64))),
)


def upgrade() -> None:
    """Add the columns, unless a migration that was cut short has."""
    inspector = sa.inspect(op.get_bind())
    for table, column in _COLUMNS:
        if column.name not in {each["name"] for each in inspector.get_columns(table)}:
            op.add_column(table, column)
