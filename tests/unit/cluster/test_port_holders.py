"""Who holds a port."""

import os
import socket
import sys
from pathlib import Path

import pytest

from duologue.cluster.port_holders import holder_of


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's tables are Linux's")
@pytest.mark.parametrize(("family", "host"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
def test_holder_of_a_port_names_the_process_that_listens(family: socket.AddressFamily, host: str) -> None:
    with socket.socket(family) as server:
        server.bind((host, 0))
        server.listen()
        assert f"(process {os.getpid()}, in {Path.cwd()})" in holder_of(server.getsockname()[1])


def test_holder_of_a_port_that_nobody_holds_is_another_program() -> None:
    with socket.socket() as bound:  # it does not listen
        bound.bind(("127.0.0.1", 0))
        assert holder_of(bound.getsockname()[1]) == "another program"
