"""The making of tables in migrations."""

from typing import Any

import sqlalchemy as sa
from alembic import op

from domaeka.store.columns import OPTIONS
from domaeka.store.revisions import not_ours


def create(name: str, *columns: "sa.Column[Any]", **options: object) -> None:
    """
    Make a table, with the options of all tables.

    Where a statement cannot be taken back (MariaDB), a migration that was cut short is done again:
    a table that is there, with these columns, is left alone.

    @param options: more of them.
    @raise StoreClosed: a table of that name is there that is not ours.
    """
    inspector = sa.inspect(op.get_bind())
    if not inspector.has_table(name):
        op.create_table(name, *columns, **{**OPTIONS, **options})
    elif not {column.name for column in columns} <= {
        found["name"] for found in inspector.get_columns(name)
    }:
        raise not_ours(name)
