#!/usr/bin/env bash
# The archive of `make wheels`, installed by the lines of docs/operations.md and used, in a network namespace without
# a route (root, for the namespace). PYTHON: that of the archive's name.
#   PYTHON=/usr/bin/python3 tests/trial/carried.sh dist/qnode-0.2.0-cp311-linux-x86_64.tar
set -euo pipefail
archive=$(realpath "$1")
if [ -z "${INSIDE:-}" ]; then INSIDE=yes exec unshare --net "$0" "$archive"; fi
[ -z "$(ip route)" ] || { echo "this namespace has a route" >&2; exit 1; }
python=${PYTHON:-python3}
unset PYTHONPATH
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
tar xf "$archive"
cd "$(basename "$archive" .tar)"
sha256sum --check --quiet SHA256SUMS
"$python" check_machine.py "$work/opt"
"$python" -m venv --clear "$work/opt"
"$work/opt/bin/pip" install --quiet --no-index --find-links . 'qnode[zmq,visa,strongswan,plots,testbed]'
cd "$work"
PATH=$work/opt/bin:$PATH
du -sh opt
qnode --version
qnodectl --version
echo '{"n_z": [1947967, 451044], "m_z": [13130, 3077], "n_x": [76090, 17608], "m_x": [65, 13], "mu": [0.675, 0.22],
 "p": [0.537, 0.463], "eps_sec": 1e-9, "eps_cor": 1e-15, "lambda_ec": 181507}' >block.json
qnode keylength --estimator wiesemann2024 block.json
python - <<'EOF'
from qnode.devices.registry import known_drivers, load_driver
for name in known_drivers():
    load_driver(name)
import asyncua, matplotlib, pymodbus, pyvisa, vici, zmq
print(f"{len(known_drivers())} drivers and the packages of all extras are imported")
EOF
qnodectl pki init trial >init.log
qnode setup alice --lab qnode-pki --folder site --state state --kme-id kme-alice --peer-kme-id kme-bob --link-name trial \
    --address 127.0.0.1:7400 --listen 127.0.0.1:8443 --sae encryptor-alice --peer-sae encryptor-bob >setup.log
qnode check site/alice.toml
