"""A front end without a server: reload, and its stop while the server of its store is silent."""

import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import structlog
import tomli_w
from http_support import HOST, Pki
from prometheus_client.parser import text_string_to_metric_families

pytest.importorskip("psycopg")

from qnode.cli.serve import serve
from qnode.serve.config import load_front_end
from qnode.serve.run import RunningFrontEnd
from qnode.serve.status import render_front_end_metrics

_STOPS = """
import sys
from pathlib import Path
from qnode.serve import process

process.STOP_LIMIT_S = 0.3
sys.exit(process.run_front_end_until_signal(Path(sys.argv[1]), anchor_lost=False, stop_at_eof=True))
"""


def tables(folder: Path, server_port: int = 5432) -> dict[str, Any]:
    """Return a front end's file in ``folder``, and write what it names."""
    pki = Pki(folder)
    (folder / "store.key").write_bytes(bytes(32))
    for key in (folder / "store.key", folder / "server.key"):
        key.chmod(0o600)
    return {
        "front_end": {"name": "one", "kme_id": "kme-alice", "peer_kme_id": "kme-bob"},
        "store": {
            "store_key": "store.key",
            "anchor": "anchor",
            "postgresql": {"parameters": f"host={HOST} port={server_port} dbname=keys user=qnode"},
        },
        "etsi014": {
            "listen": f"{HOST}:0",
            "tls": {"ca": str(pki.ca_file), "certificate": "server.pem", "key": "server.key"},
            "sae": [],
        },
        "operate": {"control_socket": "control.sock"},
    }


def written(folder: Path, tables: dict[str, Any]) -> Path:
    path = folder / "serve.toml"
    path.write_text(tomli_w.dumps(tables))
    return path


def status_of(folder: Path) -> object:
    """Return the exit code of `qnode serve status`."""
    arguments = ["status", "--socket", str(folder / "control.sock"), "--patience", "60"]
    return serve.main(arguments, standalone_mode=False)


async def test_names_and_texts_of_the_metrics_follow_the_conventions(tmp_path: Path) -> None:
    path = written(tmp_path, tables(tmp_path))
    store: Any = SimpleNamespace(node_is_away=True)
    page = render_front_end_metrics(RunningFrontEnd(load_front_end(path), path, store).status()).decode()
    families = {family.name: family for family in text_string_to_metric_families(page)}
    for family in families.values():
        assert family.documentation.endswith((".", "1."))
        assert family.name.startswith(("qkd_front_end_", "qkd_tls_"))
    assert families["qkd_front_end_serving"].samples[0].value == 0.0
    assert families["qkd_front_end_node_away"].samples[0].value == 1.0


async def test_what_waits_for_a_restart_is_told_by_a_reload_and_not_shown_as_done(tmp_path: Path) -> None:
    content = tables(tmp_path)
    path = written(tmp_path, content)
    store: Any = SimpleNamespace(node_is_away=False)
    running = RunningFrontEnd(load_front_end(path), path, store)
    content["etsi014"] |= {"listen": f"{HOST}:8443", "most_connections": 700}
    content["operate"] |= {"metrics_listen": f"{HOST}:9100"}
    written(tmp_path, content)
    with structlog.testing.capture_logs() as logs:
        running.renew()
        running.renew()
    told = [event["restart_needed"] for event in logs if event["event"] == "front_end.reloaded"]
    assert told == [["etsi014.listen", "operate.metrics_listen"]] * 2
    assert running.status().etsi014.url == f"https://{HOST}:0"
    assert running.config.etsi014.most_connections == 700


def test_the_end_of_standard_input_ends_a_front_end_in_time_though_the_server_of_its_store_is_silent(
    tmp_path: Path,
) -> None:
    with socket.create_server((HOST, 0)) as silent:
        path = written(tmp_path, tables(tmp_path, silent.getsockname()[1]))
        with subprocess.Popen(
            [sys.executable, "-c", _STOPS, str(path)],
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as child:
            assert child.stdin is not None
            assert child.stderr is not None
            said = ""
            while "front_end.started" not in said:
                line = child.stderr.readline()
                assert line, said
                said += line
            assert status_of(tmp_path) == 1
            child.stdin.close()
            said += child.stderr.read()
            assert child.wait(100) == 1, said
    assert status_of(tmp_path) == 2
    assert "front_end.stop_forced" in said
    assert "not stopped within 0.3 s: the store hangs" in said
