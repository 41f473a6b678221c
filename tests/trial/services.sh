#!/usr/bin/env bash
# Both sites as systemd services on one machine from the shipped unit and site files, unchanged: /run is root's (0755), a key is
# fetched at both, and reloads interrupt nobody (reload.sh). Run it as root on a machine that may be thrown away; it installs into /etc and expects QNODE at
# /opt/qnode/bin/qnode.
#   tests/trial/services.sh
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
top=$(realpath "$here/../..")
chmod 755 /run
stat -c "/run is %a of %U" /run
install -m 644 "$top/systemd/qnode@.service" /etc/systemd/system/
install -D -m 644 "$top/systemd/qnode-sysusers.conf" /etc/sysusers.d/qnode.conf
systemd-sysusers
"$here/secrets.sh" /etc/qnode
install -m 644 "$top/config/alice.toml" "$top/config/bob.toml" /etc/qnode/
systemctl daemon-reload
systemctl start qnode@alice qnode@bob
systemctl is-active qnode@alice qnode@bob
"$here/fetch.sh" /etc/qnode https://127.0.0.1:8443 https://127.0.0.1:8444 "${PATIENCE:-900}"
"$here/reload.sh" /etc/qnode https://127.0.0.1:8443 https://127.0.0.1:8444
for site in alice bob; do
    /opt/qnode/bin/qnodectl --socket "/run/qnode/$site/control.sock" status || true
    systemctl show -p ActiveState,StatusText,NRestarts "qnode@$site"
    journalctl -u "qnode@$site" QKD_EVENT=node.started -n 1 -o cat | grep node.started # the fields of events
done
systemctl stop qnode@alice qnode@bob
echo "both sites worked as services"
