#!/usr/bin/env bash
# Both sites as systemd services on one machine, from the shipped units and what `qnode setup` leaves, unchanged: /run is root's
# (0755), a key is fetched at both, the page is for operators, reloads interrupt nobody (reload.sh), journald has the fields of
# events, little of the system is exposed, and the watchdog ends a stopped daemon. Run it as root on a machine that may be thrown
# away; it installs into /etc and expects QNODE at /opt/qnode/bin/qnode.
#   tests/trial/services.sh
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
top=$(realpath "$here/../..")
export PATH=/opt/qnode/bin:$PATH
patience=${PATIENCE:-900}
etc=/etc/qnode lab=/root/qnode-pki
alice=https://127.0.0.1:8443 bob=https://127.0.0.1:8444 page=https://127.0.0.1:9410
chmod 755 /run
stat -c "/run is %a of %U" /run
install -m 644 "$top/systemd/qnode@.service" /etc/systemd/system/
install -D -m 644 "$top/systemd/qnode-sysusers.conf" /etc/sysusers.d/qnode.conf
systemd-sysusers

qnodectl pki init trial --lab "$lab"
site() { # ROLE PEER OPTIONS...
    qnode setup "$1" --lab "$lab" --kme-id "kme-$1" --peer-kme-id "kme-$2" --sae "encryptor-$1" --peer-sae "encryptor-$2" \
        --link-name trial --address 127.0.0.1:7400 --host 127.0.0.1 "${@:3}"
    mkdir -p -m 700 "$etc/sae"
    qnodectl pki issue sae "encryptor-$1" --lab "$lab" --out "$etc/sae/encryptor-$1"
}
site alice bob --listen 127.0.0.1:8443 --page 0.0.0.0:9410
site bob alice --listen 127.0.0.1:8444 --metrics 127.0.0.1:9401 --page 127.0.0.1:9411 --preshared-key "$etc/alice/preshared.key"
qnodectl pki issue operator anna --lab "$lab" --out "$etc/sae/anna"

systemctl daemon-reload
systemctl start qnode@alice qnode@bob
systemctl is-active qnode@alice qnode@bob
"$here/fetch.sh" "$etc" "$alice" "$bob" "$patience"
qnodectl preshared wipe "$etc/alice/preshared.key" "$etc/bob/preshared.key"

look() { curl -s --max-time 20 --cacert "$etc/tls/operator-ca.pem" "$@" "$page/status"; }
look --cert "$etc/sae/anna.pem" --key "$etc/sae/anna.key" | grep -q '"title":"kme-alice"'
for stranger in "--cert $etc/sae/encryptor-alice.pem --key $etc/sae/encryptor-alice.key" ""; do
    # shellcheck disable=SC2086
    if look $stranger; then echo "a stranger sees the page"; exit 1; fi
done
echo "the page is for operators"
"$here/reload.sh" "$etc" "$lab" "$alice" "$bob"

for site in alice bob; do
    qnodectl --socket "/run/qnode/$site/control.sock" status || true
    systemctl show -p ActiveState,StatusText,NRestarts "qnode@$site"
    journalctl -u "qnode@$site" QKD_EVENT=node.started -n 1 -o cat | grep node.started # the fields of events
    systemd-analyze security --no-pager --threshold=15 "qnode@$site" | tail -n 1
done

restarts() { systemctl show -p NRestarts --value qnode@alice; }
before=$(restarts) began=$(date +%s) results=
kill -STOP "$(systemctl show -p MainPID --value qnode@alice)"
until [ "$(restarts)" -gt "$before" ] && systemctl is-active -q qnode@alice; do
    [ $(($(date +%s) - began)) -lt "$patience" ] || { echo "nobody ends a stopped daemon"; exit 1; }
    results+=" $(systemctl show -p Result --value qnode@alice)"
    sleep 0.5
done
grep -q watchdog <<<"$results" || { echo "it was not the watchdog:$results"; exit 1; }
echo "a stopped daemon was ended by the watchdog, and ran again after $(($(date +%s) - began)) s"
"$here/fetch.sh" "$etc" "$alice" "$bob" "$patience"
systemctl stop qnode@alice qnode@bob
echo "both sites worked as services"
