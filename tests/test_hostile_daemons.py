"""Two daemons among strangers, beside a log that nobody reads, with clients that hang up: keys go on."""

import signal
import socket
import ssl
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import httpx
from daemons_support import STOP_S, Sites, encryptors, eventually, keys_in, two_sites

STRANGERS = 40
HASTY_CLIENTS = 20


@contextmanager
def silent_strangers(port: int) -> Iterator[None]:
    """Hold silent connections to a port of this machine, and open each again as soon as it is closed."""
    stop = threading.Event()

    def stay() -> None:
        while not stop.is_set():
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1.0) as silent:
                silent.settimeout(0.5)
                while not stop.is_set():
                    with suppress(TimeoutError):
                        if not silent.recv(1):
                            break
            stop.wait(0.02)

    threads = [threading.Thread(target=stay) for _ in range(STRANGERS)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def ask_and_hang_up(sites: Sites, key_ids: list[str]) -> None:
    """Ask Bob's stopped daemon for each key on a connection of its own, and close them all."""
    sae = encryptors(sites.endpoints)[1].sae
    context = ssl.create_default_context(cafile=sites.endpoints.ca)
    context.load_cert_chain(sae.cert, sae.key)
    url = urlsplit(sites.endpoints.sites["bob"].url)
    open_ones = []
    for _ in key_ids:
        tcp = socket.create_connection((url.hostname, url.port), timeout=30.0)
        open_ones.append(context.wrap_socket(tcp, server_hostname=url.hostname))
    sites.processes["bob"].send_signal(signal.SIGSTOP)
    for connection, key_id in zip(open_ones, key_ids, strict=True):
        path = f"/api/v1/keys/{sae.peer_sae_id}/dec_keys?key_ID={key_id}"
        connection.sendall(f"GET {path} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
        connection.close()
    sites.processes["bob"].send_signal(signal.SIGCONT)


def test_strangers_a_stuck_log_and_clients_that_hang_up_leave_a_link_its_keys(tmp_path: Path) -> None:
    with two_sites(tmp_path) as sites:
        command = [sys.executable, "-m", "qnode", "run", "--config", str(sites.site_files["alice"])]
        alice = sites.processes["alice"] = subprocess.Popen(command, stderr=subprocess.PIPE)
        sites.wait_until_serving("alice")
        link_port = int(tomllib.loads(sites.site_files["alice"].read_text())["peer"]["address"].split(":")[1])
        with silent_strangers(link_port):
            sites.start("bob")
            sites.wait_until_serving("bob")
            at_alice, at_bob = encryptors(sites.endpoints)
            keys = at_alice.assign(HASTY_CLIENTS)
            own = at_alice.fetch(list(keys))
            assert (own.status_code, own.json()) == (401, {"message": "not authorised"})

            ask_and_hang_up(sites, list(keys))
            told = "client has disconnected"
            eventually(
                lambda: sites.log("bob").count(told) == HASTY_CLIENTS, "all hasty clients were noticed"
            )
            assert keys_in(at_bob.fetch(list(keys))) == keys
            assert at_bob.fetch(list(keys)).status_code == 400

        # Far more lines than a pipe holds, and each answer shows that the event loop goes on.
        with at_alice._client() as client:
            path = f"/api/v1/keys/{at_alice.sae.peer_sae_id}/dec_keys"
            for _ in range(600):
                answer = client.get(path, params={"key_ID": "00000000-0000-4000-8000-000000000001"})
                assert answer.status_code == 400
        status = sites.status("alice")
        assert status is not None
        metrics = httpx.get(sites.endpoints.sites["alice"].metrics_url, trust_env=False).text
        assert "qkd_log_lines_dropped_total 0.0" in metrics
        refused = next(sae for sae in status.etsi014.saes if sae.sae_id == at_alice.sae.sae_id)
        assert refused.requests_refused_total >= 600
        alice.terminate()
        assert alice.wait(STOP_S) == 0
        assert alice.stderr is not None
        alice.stderr.close()
        assert sites.stop("bob") == [0]
