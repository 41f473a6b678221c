#!/usr/bin/env bash
# The Debian package on a machine that may be thrown away, with systemd (root): installed, both sites set up by
# `qnode setup` and started, upgraded while one runs, removed. A policy-rc.d must not forbid restarts.
#   tests/trial/package.sh PACKAGE [NEWER_PACKAGE]
set -euo pipefail
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
unset PYTHONPATH
package=$(realpath "$1") newer=$(realpath "${2:-$1}")
here=$(cd "$(dirname "$0")" && pwd)
told() { echo; echo "== $*"; }

told install
dpkg --install "$package"
dpkg --verify qnode # silent if every file is as packaged
command -v qnode qnodectl
qnode --version
id qnode
man --where qnode qnodectl qnode.toml

told two sites
cd /root
umask 077 # as a careful root has it
qnodectl pki init trial >/dev/null
setup() {
    qnode setup "$1" --lab qnode-pki --kme-id "kme-$1" --peer-kme-id "kme-$2" --link-name trial --address 127.0.0.1:7400 \
        --listen "$3" --host 127.0.0.1 --metrics "$4" --sae "encryptor-$1" --peer-sae "encryptor-$2" "${@:5}"
}
setup alice bob 127.0.0.1:8443 127.0.0.1:9400 >/dev/null
setup bob alice 127.0.0.1:8444 127.0.0.1:9401 --preshared-key /etc/qnode/alice/preshared.key | tail -n 3
qnode check /etc/qnode/alice.toml || true
time systemctl start qnode@alice qnode@bob # Type=notify: returns when both are ready
systemctl show -p Id,ActiveState,SubState,StatusText,NRestarts qnode@alice qnode@bob
dpkg --verify qnode # running has changed no file
find /opt/qnode -newer /root/qnode-pki -not -type l | head -n 3

told upgrade while Alice runs
sum() { find /etc/qnode -type f -exec sha256sum {} + | sort | sha256sum; }
state() { systemctl show -p InvocationID --value qnode@alice qnode@bob; }
systemctl stop qnode@bob # a site that does not run stays so
config=$(sum) before=$(state)
dpkg --install "$newer"
[ "$config" = "$(sum)" ] || { echo "the upgrade changed /etc/qnode" >&2; exit 1; }
systemctl is-active qnode@alice
systemctl is-active qnode@bob && { echo "the upgrade started a stopped site" >&2; exit 1; }
[ "$(head -n 1 <<<"$before")" != "$(state | head -n 1)" ] || { echo "qnode@alice runs the old version" >&2; exit 1; }
systemctl show -p InactiveEnterTimestamp,ActiveEnterTimestamp qnode@alice # how long the site was away
qnodectl --socket /run/qnode/alice/control.sock status | head -n 3 || true

told remove and purge
dpkg --purge qnode
systemctl is-active qnode@alice && { echo "the site still runs" >&2; exit 1; }
[ "$config" = "$(sum)" ] || { echo "the removal changed /etc/qnode" >&2; exit 1; }
ls /var/lib/qnode/alice /var/lib/qnode-anchor/alice
ls /opt/qnode /var/cache/qnode 2>&1 || true
echo "the package worked"
