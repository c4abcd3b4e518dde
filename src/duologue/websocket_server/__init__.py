"""The edge: sockets in, records on the log, frames out."""
