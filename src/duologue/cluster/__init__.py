"""The engines of the distributed mode as processes on one machine, from packages."""
