"""The log of durable delivery: batches that are not in its tables yet."""

import sqlalchemy as sa
from sqlalchemy.dialects import mysql

from domaeka.store.migrations.tables import create

revision = "0012"
down_revision = "0011"


def upgrade() -> None:
    """Make the table."""
    create(
        "domaeka_durable_log",
        sa.Column(
            "number",
            sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
            primary_key=True,
            autoincrement=False,
        ),
        sa.Column("node_key", sa.String(64), nullable=False),
        sa.Column(
            "data",
            sa.LargeBinary().with_variant(mysql.MEDIUMBLOB(), "mysql", "mariadb"),
            nullable=False,
        ),
    )
