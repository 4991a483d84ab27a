"""
MariaDB's tables are InnoDB's, also where the server makes MyISAM's by default: those take nothing
back.  From here on tables say which code may use them.
"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
#: Code that knows this revision may use the tables, until a later one says otherwise.
min_version = "0004"

_TABLES = ("devices", "rooms", "chat_lines", "sessions", "mailbox", "bans", "version")


def upgrade() -> None:
    """Change the engine of tables that have another one."""
    connection = op.get_bind()
    if connection.dialect.name not in ("mariadb", "mysql"):
        return
    for name in _TABLES:
        options = sa.inspect(connection).get_table_options(f"domaeka_{name}")
        if "innodb" not in {str(value).lower() for value in options.values()}:
            op.execute(f"ALTER TABLE domaeka_{name} ENGINE = InnoDB")
