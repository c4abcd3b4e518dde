"""What Duologue runs on: the wire to Redis, child processes, the folder of its data."""
