"""Chaos: a system is hurt on purpose while clients talk, and afterwards three views of it are compared."""
