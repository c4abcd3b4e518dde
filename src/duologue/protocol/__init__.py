"""The client protocol, version 1: frames, codes, and a connection's states. No I/O."""
