"""The vocabulary of Duologue: identities, records and errors. It imports nothing of the other packages."""
