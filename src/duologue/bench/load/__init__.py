"""Open-loop load: users on cheap sockets who send when their time has come, and what they see of it."""
