"""What the local cluster refuses, before it starts anything."""

import fcntl
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.missing import needs_engine

from duologue.cluster.local_cluster import LocalCluster
from duologue.cluster.local_env import LOCAL_ENV, LocalEnv
from duologue.cluster.local_secrets import local_secrets
from duologue.cluster.ports import free_ports
from duologue.cluster.programs import Group
from duologue.config import Settings
from duologue.domain.errors import StartRefused

ROOT = Path(__file__).parents[3]


@pytest.fixture
def root(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with what a repository has for the cluster."""
    for name in [*Settings.model_fields, *LocalEnv.model_fields]:
        monkeypatch.delenv(name.upper(), raising=False)
    with tempfile.TemporaryDirectory(prefix="duologue-") as made:
        root = Path(made)
        (root / LOCAL_ENV).parent.mkdir()
        shutil.copyfile(ROOT / LOCAL_ENV, root / LOCAL_ENV)
        yield root


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def cluster(root: Path, said: list[str]) -> LocalCluster:
    return LocalCluster(root, said.append, {})


def test_cluster_with_a_port_taken_names_the_holder_and_starts_nothing(
    root: Path, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        monkeypatch.setenv("API_PORT", str(port))
        with (
            needs_engine(from_apt_get=True),
            pytest.raises(StartRefused, match=rf"port {port} \(api-1\) is taken by .*\(process {os.getpid()}, in "),
        ):
            LocalCluster(root, said.append).start(Group.DEPENDENCIES, Group.BACKEND)
    assert not (root / ".cluster" / "supervisord.pid").exists()
    assert not (root / ".cluster" / "postgres").exists()


def test_cluster_asked_for_its_roles_without_engines_says_what_comes_first(cluster: LocalCluster) -> None:
    words = "postgres, kafka, valkey not running: `make start-dependencies`"
    with needs_engine(from_apt_get=True), pytest.raises(StartRefused, match=words):
        cluster.start(Group.BACKEND)


def test_cluster_in_a_folder_with_other_things_starts_and_removes_nothing(cluster: LocalCluster) -> None:
    cluster.folder.mkdir()
    (cluster.folder / "thesis.txt").write_text("years of work")
    with pytest.raises(StartRefused, match="holds something that is not a cluster's: set CLUSTER_DIR"):
        cluster.start(Group.DEPENDENCIES)
    with pytest.raises(StartRefused, match="holds something that is not a cluster's"):
        cluster.clean()
    assert (cluster.folder / "thesis.txt").exists()


def test_cluster_while_another_command_works_on_it_refuses(cluster: LocalCluster) -> None:
    cluster.folder.mkdir()
    local_secrets(cluster.folder, {})
    with (cluster.folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(StartRefused, match="another command works on the cluster"):
            cluster.start(Group.DEPENDENCIES)


def test_cluster_that_was_never_started_has_no_status_and_nothing_to_stop(
    cluster: LocalCluster, said: list[str]
) -> None:
    assert cluster.status() == []
    cluster.stop()
    assert said == ["The cluster does not run."]
    assert not cluster.folder.exists()


def test_cluster_that_does_not_run_cannot_be_restarted(cluster: LocalCluster) -> None:
    with pytest.raises(StartRefused, match="does not run: `make start-all` starts it"):
        cluster.restart()


def test_cluster_with_a_misspelt_setting_proposes_the_nearest(root: Path) -> None:
    (root / ".env").write_text("OPENAI_BASEURL=http://x\n")
    with pytest.raises(StartRefused, match="did you mean OPENAI_BASE_URL"):
        LocalCluster(root, print)


# With Kafka and PostgreSQL elsewhere Valkey is all that it starts: it is there in a moment


@pytest.fixture
def valkey_alone(root: Path, said: list[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalCluster]:
    monkeypatch.setenv("VALKEY_PORT", str(free_ports(1)[0]))
    (root / ".env").write_text("KAFKA_BOOTSTRAP_SERVERS=kafka:9092\nDATABASE_URL=postgresql://postgres/duologue\n")
    cluster = LocalCluster(root, said.append)
    yield cluster
    cluster.stop()


def _start(cluster: LocalCluster) -> None:
    with needs_engine(from_apt_get=True):
        cluster.start(Group.DEPENDENCIES)


def test_cluster_started_is_ready_and_stopped_is_gone_with_its_data_kept(valkey_alone: LocalCluster) -> None:
    _start(valkey_alone)
    assert [(row.name, row.ready) for row in valkey_alone.status() if row.pid] == [("valkey", True)]
    valkey_alone.stop()
    assert not any(row.pid or row.ready for row in valkey_alone.status())
    assert (valkey_alone.folder / "valkey" / "appendonlydir").exists()


def test_cluster_started_again_leaves_what_runs_alone_but_applies_what_has_changed(
    valkey_alone: LocalCluster, root: Path, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _start(valkey_alone)
    before = {row.name: row.pid for row in valkey_alone.status()}
    _start(valkey_alone)
    assert {row.name: row.pid for row in valkey_alone.status()} == before
    port = free_ports(1)[0]
    monkeypatch.setenv("VALKEY_PORT", str(port))
    changed = LocalCluster(root, said.append)
    _start(changed)
    assert [(row.ports, row.ready) for row in changed.status() if row.name == "valkey"] == [([port], True)]


def test_cluster_with_a_program_that_ends_names_it_with_the_end_of_its_log(valkey_alone: LocalCluster) -> None:
    _start(valkey_alone)
    valkey_alone.stop()
    [manifest] = (valkey_alone.folder / "valkey" / "appendonlydir").glob("*.manifest")
    manifest.write_text("nonsense\n")
    with pytest.raises(StartRefused, match=r"(?s)valkey does not come up: it has ended\..*Invalid AOF manifest"):
        _start(valkey_alone)


def test_cluster_whose_program_was_given_up_starts_it_again(valkey_alone: LocalCluster) -> None:
    _start(valkey_alone)
    valkey_alone.stop()
    [manifest] = (valkey_alone.folder / "valkey" / "appendonlydir").glob("*.manifest")
    right = manifest.read_text()
    manifest.write_text("nonsense\n")
    with pytest.raises(StartRefused):
        _start(valkey_alone)
    manifest.write_text(right)
    _start(valkey_alone)
    assert [row.ready for row in valkey_alone.status() if row.name == "valkey"] == [True]


def test_cluster_cleaned_while_it_runs_is_stopped_and_removed(valkey_alone: LocalCluster) -> None:
    _start(valkey_alone)
    [pid] = [row.pid for row in valkey_alone.status() if row.pid]
    valkey_alone.clean()
    assert not valkey_alone.folder.exists()
    assert not Path(f"/proc/{pid}/cmdline").exists() or not Path(f"/proc/{pid}/cmdline").read_bytes()
