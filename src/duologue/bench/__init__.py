"""Load and its measurement: a model server for load, a cheap client, and what they find."""
