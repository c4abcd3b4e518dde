"""`duologue dlq`: dead letters on the command line, through the API of a running server in either mode."""
