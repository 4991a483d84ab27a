"""How far imports from the previous system have come."""

import sqlalchemy as sa

from domaeka.store.migrations.tables import create

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Make the table."""
    create(
        "domaeka_imports",
        sa.Column("source_key", sa.String(64), primary_key=True),
        sa.Column("source", sa.String(1000), nullable=False),
        sa.Column("last_id", sa.BigInteger(), nullable=False),
        sa.Column("fingerprint", sa.String(64), nullable=False),
    )
