#!/usr/bin/env bash
# skip-qkd 1.0.0, a client of Cisco SKIP, cannot be used with a pre-shared key alone: it fails before it sends.
#
# Its README says that one of mtls_config and psk_config is enough. With psk_config alone SkipQKDClient
# sets check_hostname = True on the context and verify_mode = CERT_NONE after it, which ssl refuses, at every
# server. The connection is open by then, and the server sees it close without a byte.
#
# Seen 2026-11-30, Python 3.11: ValueError, 0 bytes at the server.
#
# Needs python3 with venv, and the package index. Fails when the behaviour changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet skip-qkd==1.0.0 sslpsk3==2.1.0
cat > "$folder/look.py" <<'PYTHON'
import socket

from skip_qkd import PSKConfig, SkipQKDClient

with socket.create_server(("127.0.0.1", 0)) as server:
    address = f"127.0.0.1:{server.getsockname()[1]}"
    client = SkipQKDClient(address, "router", psk_config=PSKConfig(identity="router", psk="00" * 32))
    try:
        client.capabilities()
    except ValueError as error:
        print(f"ValueError: {error}")
    else:
        raise SystemExit("it works now")
    connection, _ = server.accept()
    connection.settimeout(10.0)
    sent = connection.recv(1)
    print(f"bytes at the server: {len(sent)}")
    raise SystemExit(bool(sent))
PYTHON
"$folder/venv/bin/python" "$folder/look.py"
