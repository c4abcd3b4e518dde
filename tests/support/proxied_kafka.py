"""A Kafka with one more listener, which its clients are told to reach through a proxy."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from tests.support.tcp_proxy import TcpProxy

from duologue.cluster.kafka import KafkaPorts, KafkaServer
from duologue.cluster.ports import free_ports

_PROTOCOLS = "PLAINTEXT:PLAINTEXT,SASL_PLAINTEXT:SASL_PLAINTEXT,CONTROLLER:PLAINTEXT,PROXIED:PLAINTEXT"


class ProxiedKafka(KafkaServer):
    """A broker as tests share it. A client is told every broker's address, so a proxy's has to be known to Kafka."""

    def __init__(self, folder: Path) -> None:
        broker, controller, sasl, self._behind, self._front = free_ports(5)
        brokers = f"PLAINTEXT://127.0.0.1:{broker},SASL_PLAINTEXT://127.0.0.1:{sasl}"
        properties = {
            "listener.security.protocol.map": _PROTOCOLS,
            "listeners": f"{brokers},CONTROLLER://127.0.0.1:{controller},PROXIED://127.0.0.1:{self._behind}",
            "advertised.listeners": f"{brokers},PROXIED://127.0.0.1:{self._front}",
        }
        super().__init__(folder, ports=KafkaPorts(broker, controller, sasl), properties=properties)

    @property
    def proxied_bootstrap_servers(self) -> str:
        """What `KAFKA_BOOTSTRAP_SERVERS` takes while `proxy` is open."""
        return f"127.0.0.1:{self._front}"

    @asynccontextmanager
    async def proxy(self) -> AsyncIterator[TcpProxy]:
        """Listen in front of the listener that is for this."""
        async with TcpProxy(("127.0.0.1", self._behind)).listening(self._front) as proxy:
            yield proxy
