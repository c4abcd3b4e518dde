"""Alembic runs this file for every command; `duologue.store.migrate` has put the connection into the configuration."""

from alembic import context

from duologue.store.schema import METADATA

connection = context.config.attributes.get("connection")
if connection is None:  # offline: the statements are printed
    context.configure(
        url=context.config.get_main_option("sqlalchemy.url"),
        target_metadata=METADATA,
        literal_binds=True,
        dialect_opts={"paramstyle": "named"},
    )
else:
    context.configure(connection=connection, target_metadata=METADATA, render_as_batch=True)

with context.begin_transaction():
    context.run_migrations()
