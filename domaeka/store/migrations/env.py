"""Runs the migrations on the connection that C{domaeka.store.database} holds open."""

from alembic import context

context.configure(connection=context.config.attributes["connection"])
with context.begin_transaction():
    context.run_migrations()
