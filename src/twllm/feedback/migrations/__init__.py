"""Alembic migrations of the feedback database, shipped with the package and run when a database is opened."""
