"""How the results store got its tables, a step a file; run by `edgekit.flow.store` through Alembic."""
