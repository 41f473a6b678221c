#!/usr/bin/env bash
# Two hosts in two network namespaces with nothing but a cable between them: both sites as docs/two-hosts.md sets them up, with
# the simulated fibre over TCP, a key fetched at both, a cut of the cable, and another key. Needs root, iproute2 and curl;
# all traffic stays within the two namespaces, which go away at the end. `SPEED=20` runs it faster than real time.
#   tests/trial/two_hosts.sh [QNODE]        QNODE: the program, default .venv/bin/qnode
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
qnode=$(realpath --no-symlinks "${1:-$here/../../.venv/bin/qnode}")
work=$(mktemp -d /tmp/qnode-two-hosts.XXXXXX)
chmod 711 "$work"
mark=qn$$
pids=()

finish() {
    status=$?
    set +e
    [ ${#pids[@]} -eq 0 ] || kill "${pids[@]}" 2>/dev/null
    wait
    ip netns del "$mark-alice" 2>/dev/null
    ip netns del "$mark-bob" 2>/dev/null
    if [ $status -eq 0 ]; then rm -r "$work"; else echo "kept: $work"; fi
}
trap finish EXIT

declare -A address=([alice]=10.77.0.1 [bob]=10.77.0.2)
lab=$work/lab
qnodectl() { "$(dirname "$qnode")/qnodectl" "$@"; }
qnodectl pki init trial --lab "$lab" >/dev/null
site() { # ROLE PEER OPTIONS...
    "$qnode" setup "$1" --folder "$work/$1" --state "$work/$1/state" --lab "$lab" --link-name trial \
        --kme-id "kme-$1" --peer-kme-id "kme-$2" --sae "encryptor-$1" --peer-sae "encryptor-$2" \
        --address "${address[alice]}:7400" --listen "${address[$1]}:8443" --host "${address[$1]}" \
        --fibre "tcp://${address[alice]}:7401" "${@:3}" >/dev/null
    qnodectl pki issue sae "encryptor-$1" --lab "$lab" --out "$work/encryptors/sae/encryptor-$1" >/dev/null
    [ -z "${SPEED:-}" ] || sed -i "s#^config = { fibre = \"[^\"]*\"#&, simulation = { speed = $SPEED.0 }#" "$work/$1/$1.toml"
}
mkdir -p -m 700 "$work/encryptors/sae" "$work/encryptors/tls" "$work/carried"
site alice bob --fibre-peer "${address[bob]}"
cp "$work/alice/alice/preshared.key" "$work/carried/"
site bob alice --preshared-key "$work/carried/preshared.key"
cp "$lab/sae-ca.pem" "$work/encryptors/tls/"

for site in alice bob; do ip netns add "$mark-$site"; done
ip link add "$mark-a" netns "$mark-alice" type veth peer name "$mark-b" netns "$mark-bob"
for site in alice bob; do
    ip -n "$mark-$site" address add "${address[$site]}/30" dev "$mark-${site:0:1}"
    ip -n "$mark-$site" link set lo up
    ip -n "$mark-$site" link set "$mark-${site:0:1}" up
done

for site in alice bob; do
    "$qnode" check "$work/$site/$site.toml"
    ip netns exec "$mark-$site" "$qnode" run --config "$work/$site/$site.toml" 2>"$work/$site.log" &
    pids+=($!)
done

fetch() {
    "$here/fetch.sh" "$work/encryptors" "https://${address[alice]}:8443" "https://${address[bob]}:8443" "$1" \
        ip netns exec "$mark-alice" -- ip netns exec "$mark-bob"
}

at_bob() { qnodectl --socket "$work/bob/state/bob/control.sock" "$@"; }
accepted() { at_bob status --json | sed -n 's/^ *"accepted": *\([0-9]*\),*/\1/p' | sed 1q; } # of the first link

patience=${PATIENCE:-900}
fetch "$patience"
qnodectl preshared wipe "$work/carried/preshared.key" "$work"/{alice/alice,bob/bob}/preshared.key
echo "the cable is out for 15 s"
ip -n "$mark-alice" link set "$mark-a" down
sleep 15
ip -n "$mark-alice" link set "$mark-a" up
before=$(accepted) began=$(date +%s)
until [ "$(accepted)" -gt "$before" ]; do
    [ $(($(date +%s) - began)) -lt "$patience" ] || { echo "no block after the cut"; exit 1; }
    sleep 1
done
echo "a block was accepted $(($(date +%s) - began)) s after the cable was back"
fetch 60
at_bob status || true
grep -h "fibre\." "$work"/*.log
echo "both sites worked on two hosts"
