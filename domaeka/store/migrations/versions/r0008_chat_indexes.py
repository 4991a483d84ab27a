"""
Indexes of the chat log: by time, and by room and time.

No database takes the longest ids of rooms in an index: their first characters are enough.
"""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"

_TABLE = "domaeka_chat_lines"


def upgrade() -> None:
    """Make the indexes."""
    connection = op.get_bind()
    kind = connection.dialect.name
    # A migration that was cut short is done again.
    if kind in ("mariadb", "mysql"):
        inspector = sa.inspect(connection)
        indexes = {index["name"] for index in inspector.get_indexes(_TABLE)}
        # Of an index of a text's first characters, it does not see what is in order behind them.
        if "room_start" not in {column["name"] for column in inspector.get_columns(_TABLE)}:
            op.execute(
                f"ALTER TABLE {_TABLE} ADD COLUMN room_start VARCHAR(64) "
                "GENERATED ALWAYS AS (LEFT(room_id, 64)) VIRTUAL"
            )
        for name, columns in (("time", "time"), ("room", "room_start, time")):
            if f"{_TABLE}_{name}" not in indexes:
                op.execute(f"CREATE INDEX {_TABLE}_{name} ON {_TABLE} ({columns})")
        return
    end = ", id" if kind == "postgresql" else ""  # SQLite's have it
    for name, columns in (("time", "time"), ("room", "substr(room_id, 1, 64), time")):
        op.execute(f"CREATE INDEX IF NOT EXISTS {_TABLE}_{name} ON {_TABLE} ({columns}{end})")
