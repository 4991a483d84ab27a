"""The last batch of the chat log of each server."""

import sqlalchemy as sa

from domaeka.store.migrations.tables import create

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    """Make the table."""
    create(
        "domaeka_chat_batches",
        sa.Column("node_key", sa.String(64), primary_key=True),
        sa.Column("batch", sa.String(32), nullable=False),
    )
