"""The composition root: the only place that knows which adapters are live, and that opens and closes each client."""

from duologue.bootstrap.parts import ROLES, RoleName
from duologue.bootstrap.run import migrate_database, run_embedded, run_role

__all__ = ["ROLES", "RoleName", "migrate_database", "run_embedded", "run_role"]
