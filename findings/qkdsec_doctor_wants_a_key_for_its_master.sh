#!/usr/bin/env bash
# qkdsec 0.3.0: `qkdsec doctor` calls a key manager that follows ETSI GS QKD 014 V1.1.1 NON-CONFORMANT.
#
# Its probe dec_keys_roundtrip asks for a key (enc_keys) and fetches it (dec_keys) with one and the same client
# certificate. In the standard a key is for the slave that the master named: the master itself gets 401. Its
# probe error_contract_404 wants 404 for an unknown key_ID, where the standard has 400 and knows no 404. So only
# a key manager that gives keys to whoever asks passes, and one that is right fails the check.
#
# Seen 2026-11-30, Python 3.11: 8 of 10 probes pass, dec_keys_roundtrip fails, error_contract_404 warns, exit 1.
#
# Needs python3 with venv, and the package index. Fails when the behaviour changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet 'qkdsec[doctor]==0.3.0'
cat > "$folder/look.py" <<'PYTHON'
import base64
import json
import os
import subprocess
import sys
import threading
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

NUMBERS = {"key_size": 256, "stored_key_count": 100, "max_key_count": 1000, "max_key_per_request": 10}
NUMBERS |= {"max_key_size": 1024, "min_key_size": 64, "max_SAE_ID_count": 0}
NAMES = {"source_KME_ID": "kme-a", "target_KME_ID": "kme-b", "master_SAE_ID": "sae-a", "slave_SAE_ID": "sae-b"}
given = set()


class KeyManager(BaseHTTPRequestHandler):
    """The key manager of sae-a; whoever calls is sae-a (in place of a certificate)."""

    def do_GET(self):
        address = urlsplit(self.path)
        asked = {name: int(values[0]) for name, values in parse_qs(address.query).items()}
        self.answer(address.path.rpartition("/")[2], asked)

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.answer(self.path.rpartition("/")[2], json.loads(body))

    def answer(self, call, asked):
        if call == "status":
            return self.send(200, NAMES | NUMBERS)
        if call == "dec_keys":
            if any(one["key_ID"] in given for one in asked["key_IDs"]):
                return self.send(401, {"message": "not authorised"})
            return self.send(400, {"message": "one or more keys specified are not found on KME"})
        number, size = asked.get("number", 1), asked.get("size", 256)
        if number > NUMBERS["max_key_per_request"] or size % 8:
            return self.send(400, {"message": "size shall be a multiple of 8" if size % 8 else "too many keys"})
        keys = [{"key_ID": str(uuid.uuid4()), "key": base64.b64encode(os.urandom(size // 8)).decode()} for _ in range(number)]
        given.update(key["key_ID"] for key in keys)
        return self.send(200, {"keys": keys})

    def send(self, status, body):
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


server = ThreadingHTTPServer(("127.0.0.1", 0), KeyManager)
threading.Thread(target=server.serve_forever, daemon=True).start()
url = f"http://127.0.0.1:{server.server_port}"
doctor = os.path.join(os.path.dirname(sys.executable), "qkdsec")
done = subprocess.run([doctor, "doctor", url, "-s", "sae-b", "-f", "json"], capture_output=True, text=True)
results = {one["name"]: one["status"] for one in json.loads(done.stdout)["results"]}
others = {name: status for name, status in results.items() if status != "pass"}
print(f"{len(results) - len(others)} of {len(results)} probes pass, {others}, exit {done.returncode}")
expected = {"dec_keys_roundtrip": "fail", "error_contract_404": "warn"}
raise SystemExit(done.returncode != 1 or others != expected or len(results) != 10)
PYTHON
"$folder/venv/bin/python" "$folder/look.py"
