"""A Kafka that encrypts and asks who is there, with certificates of the test's own: Java's `keytool` makes them."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Final

from confluent_kafka.admin import AdminClient
from confluent_kafka.admin._scram import ScramCredentialInfo, ScramMechanism, UserScramCredentialUpsertion

from duologue.cluster.kafka import KafkaPorts, KafkaServer, java
from duologue.cluster.ports import free_ports

USER: Final = ("duologue", "a secret")
_STORE_PASSWORD: Final = "changeit"  # of a key that nobody keeps


class Authority:
    """Something that signs for itself: a key with its certificate in a Java key store, and the certificate as PEM."""

    def __init__(self, folder: Path, name: str) -> None:
        self.store, self.certificate = folder / f"{name}.p12", folder / f"{name}.pem"
        subject = ("-dname", f"CN={name}", "-ext", "san=ip:127.0.0.1,dns:localhost")
        self._keytool("-genkeypair", "-keyalg", "EC", "-validity", "2", *subject)
        self._keytool("-exportcert", "-rfc", "-file", str(self.certificate))

    def trust(self, other: Authority) -> None:
        """Add another's certificate to the store."""
        self._keytool("-importcert", "-noprompt", "-file", str(other.certificate), alias="other")

    def export_key(self, target: Path) -> None:
        """Write its key as PEM, by openssl: Java's tool exports none."""
        command = ["openssl", "pkcs12", "-in", str(self.store), "-nocerts", "-nodes", "-out", str(target)]
        subprocess.run([*command, "-passin", f"pass:{_STORE_PASSWORD}"], check=True, capture_output=True)

    def _keytool(self, command: str, *arguments: str, alias: str = "own") -> None:
        store = ("-keystore", str(self.store), "-storetype", "PKCS12", "-storepass", _STORE_PASSWORD, "-alias", alias)
        keytool = str(Path(java()).parent / "keytool")
        done = subprocess.run([keytool, command, *store, *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


class SecureKafka:
    """A broker with SASL over TLS on one port, TLS that asks for the client's certificate on another."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        self.authority, self.client = Authority(folder, "broker"), Authority(folder, "client")
        self.authority.trust(self.client)
        plain, controller, sasl, tls = free_ports(4)
        self.sasl_servers, self.tls_servers = f"127.0.0.1:{sasl}", f"127.0.0.1:{tls}"
        brokers = f"PLAINTEXT://127.0.0.1:{plain},SASL_SSL://{self.sasl_servers},SSL://{self.tls_servers}"
        self.server = KafkaServer(
            folder / "kafka",
            ports=KafkaPorts(plain, controller),
            properties={
                "listeners": f"{brokers},CONTROLLER://127.0.0.1:{controller}",
                "advertised.listeners": brokers,
                "listener.security.protocol.map": (
                    "PLAINTEXT:PLAINTEXT,SASL_SSL:SASL_SSL,SSL:SSL,CONTROLLER:PLAINTEXT"
                ),
                "sasl.enabled.mechanisms": "PLAIN,SCRAM-SHA-512",
                "listener.name.sasl_ssl.plain.sasl.jaas.config": (
                    f'org.apache.kafka.common.security.plain.PlainLoginModule required user_{USER[0]}="{USER[1]}";'
                ),
                "listener.name.sasl_ssl.scram-sha-512.sasl.jaas.config": (
                    "org.apache.kafka.common.security.scram.ScramLoginModule required;"
                ),
                "listener.name.ssl.ssl.client.auth": "required",
                "ssl.keystore.type": "PKCS12",
                "ssl.keystore.location": str(self.authority.store),
                "ssl.keystore.password": _STORE_PASSWORD,
                "ssl.truststore.type": "PKCS12",
                "ssl.truststore.location": str(self.authority.store),
                "ssl.truststore.password": _STORE_PASSWORD,
            },
        )

    def start(self) -> None:
        """Start it, with a user for SCRAM."""
        self.server.start()
        admin = AdminClient({"bootstrap.servers": self.server.bootstrap_servers})
        scram = ScramCredentialInfo(ScramMechanism.SCRAM_SHA_512, 4096)
        user = UserScramCredentialUpsertion(USER[0], scram, password=USER[1].encode())
        admin.alter_user_scram_credentials([user])[USER[0]].result()
