"""Alembic's revisions of the crowd site's tables; see `collect.crowd.migrate`."""
