"""Claims on the runs of schedules."""

import sqlalchemy as sa

from domaeka.store.migrations.tables import create

revision = "0013"
down_revision = "0012"


def upgrade() -> None:
    """Make the table."""
    create(
        "domaeka_schedules",
        sa.Column("schedule_key", sa.String(64), primary_key=True),
        sa.Column("due", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("schedule", sa.String(1000), nullable=False),
        sa.Column("owner", sa.String(64), nullable=False),
    )
