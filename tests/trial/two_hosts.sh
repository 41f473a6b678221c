#!/usr/bin/env bash
# Two hosts in two network namespaces with nothing but a cable between them: both sites from the shipped site files with the
# simulated fibre over TCP, a key fetched at both, a cut of the cable, and another key. Needs root, iproute2, curl and openssl;
# all traffic stays within the two namespaces, which go away at the end. `SPEED=20` runs it faster than real time.
#   tests/trial/two_hosts.sh [QNODE]        QNODE: the program, default .venv/bin/qnode
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
config=$(realpath "$here/../../config")
qnode=$(realpath "${1:-$here/../../.venv/bin/qnode}")
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
"$here/secrets.sh" "$work/etc" "${address[alice]}" "${address[bob]}"

for site in alice bob; do ip netns add "$mark-$site"; done
ip link add "$mark-a" netns "$mark-alice" type veth peer name "$mark-b" netns "$mark-bob"
for site in alice bob; do
    ip -n "$mark-$site" address add "${address[$site]}/30" dev "$mark-${site:0:1}"
    ip -n "$mark-$site" link set lo up
    ip -n "$mark-$site" link set "$mark-${site:0:1}" up
done

for site in alice bob; do
    # The three lines of docs/two-hosts.md, and folders of our own.
    sed -e "s#127.0.0.1:7400#${address[alice]}:7400#" \
        -e "s#tcp://127.0.0.1:7401\"#tcp://${address[alice]}:7401\"${SPEED:+, simulation = { speed = $SPEED.0 \}}#" \
        -e "s#/etc/qnode#$work/etc#" \
        -e "s#/run/credentials/qnode@$site.service/\([a-z0-9-]*\)-key#$work/etc/$site/\1.key#" \
        -e "s#/var/lib/qnode-anchor/$site#$work/$site/anchor#; s#/var/lib/qnode/$site#$work/$site/store#" \
        -e "s#/run/qnode#$work/run#" "$config/$site.toml" >"$work/$site.toml"
    [ $site = bob ] || sed -i "s#\(fibre = \"[^\"]*\"\)#\1, fibre_peer = \"${address[bob]}\"#" "$work/$site.toml"
    mkdir -p -m 700 "$work/$site/store" "$work/$site/anchor" "$work/run/$site"
    ip netns exec "$mark-$site" "$qnode" run --config "$work/$site.toml" 2>"$work/$site.log" &
    pids+=($!)
done

fetch() {
    "$here/fetch.sh" "$work/etc" "https://${address[alice]}:8443" "https://${address[bob]}:8444" "$1" \
        ip netns exec "$mark-alice" -- ip netns exec "$mark-bob"
}

qnodectl() { "$(dirname "$qnode")/qnodectl" --socket "$work/run/bob/control.sock" "$@"; }
accepted() { qnodectl status --json | sed -n 's/^ *"accepted": *\([0-9]*\),*/\1/p' | sed 1q; } # of the first link

patience=${PATIENCE:-900}
fetch "$patience"
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
qnodectl status || true
grep -h "fibre\." "$work"/*.log
echo "both sites worked on two hosts"
