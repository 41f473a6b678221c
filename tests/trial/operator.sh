#!/usr/bin/env bash
# A new operator's first hour, by the commands of docs/operations.md, docs/pki.md and docs/page.md: two sites on two machines, installed from
# the archive of `make wheels`; certificates; keys; encryptors added and removed; a certificate renewed; a daemon stopped by SIGSTOP; Bob's site
# taken back to 0.1.0 and upgraded; its backup put back on a third machine. It prints what was seen, the page, and the time of each step.
#   ARCHIVE=dist/qnode-*.tar OLD=FOLDER FIBRE=FOLDER MOVE=COMMAND AT_ALICE="ssh root@192.0.2.1" AT_BOB="ssh root@192.0.2.2" \
#       AT_NEW="ssh root@192.0.2.3" tests/trial/operator.sh [STEP ...]
# AT_*: what runs a command as root on a machine with systemd, Python, curl and openssl that may be thrown away. ALICE, BOB: addresses.
# OLD: a folder with a wheel of commit bac72f2 and one of trustme, which 0.1.0 needs. FIBRE: a folder that the machines share (so they run
# on one host), because the simulated fibre of 0.1.0 is a socket in a folder. MOVE: gives Bob's address to the third machine.
set -euo pipefail
ALICE=${ALICE:-192.0.2.1} BOB=${BOB:-192.0.2.2} SPEED=${SPEED:-4.0} PATIENCE=${PATIENCE:-600}
name=$(basename "${ARCHIVE:-none}" .tar)
declare -A machine=([alice]=$AT_ALICE [bob]=$AT_BOB [new]=$AT_NEW)

at() { # MACHINE, commands on stdin
    # shellcheck disable=SC2086
    (echo "export HOME=/root PYTHONPATH=; cd; umask 077; set -euo pipefail"; cat) | ${machine[$1]} bash -s
}
# shellcheck disable=SC2086
take() { ${machine[$1]} cat "$2"; }
put() { # MACHINE FILE, content on stdin
    echo "mkdir -p $(dirname "$2"); install -m 600 /dev/null $2" | at "$1"
    # shellcheck disable=SC2086
    ${machine[$1]} tee "$2" >/dev/null
}
carry() { take "$1" "$2" | put "$3" "$4"; } # FROM FILE TO FILE
said() { printf '%s   %s\n' "$(date -u +%T)" "$*"; }
wrong() { said "WRONG: $*"; exit 1; }
field() { sed -n "s/.*\"$1\": *\"\([^\"]*\)\".*/\1/p"; }

# An encryptor at its own machine: MACHINE SAE URL
as() { echo "curl -s --max-time 60 --cacert sae-ca.pem --cert $2.pem --key $2.key '$3'" | at "$1"; }
# A key at both machines, the same: SAE-AT-ALICE SAE-AT-BOB [MACHINE-OF-BOB]
exchange() {
    local answer key_id same
    answer=$(as alice "$1" "https://$ALICE:8443/api/v1/keys/$2/enc_keys") || return 1
    key_id=$(field key_ID <<<"$answer")
    [ -n "$key_id" ] || { echo "$answer"; return 1; }
    same=$(as "${3:-bob}" "$2" "https://$BOB:8443/api/v1/keys/$1/dec_keys?key_ID=$key_id") || return 1
    [ -n "$(field key <<<"$same")" ] && [ "$(field key <<<"$same")" = "$(field key <<<"$answer")" ] || { echo "$key_id is not there or differs at Bob's site: $(field message <<<"$same")"; return 1; }
    echo "$key_id"
}
first_key() { # WHAT [MACHINE-OF-BOB]
    local began=$SECONDS key_id
    until key_id=$(exchange encryptor-alice encryptor-bob "${2:-bob}"); do
        [ $((SECONDS - began)) -lt "$PATIENCE" ] || wrong "no key: $key_id"
        sleep 3
    done
    said "$1: key $key_id is the same at both sites, after $((SECONDS - began)) s"
}
accepted() { echo "qnodectl status --json" | at alice | sed -n 's/^ *"accepted": *\([0-9]*\),*/\1/p' | sed 1q; }
new_block() { # WHAT: the link itself makes keys, not only the store gives them
    local began=$SECONDS before now
    before=$(accepted || true)
    until now=$(accepted || true) && [ "${now:-0}" -gt "${before:-0}" ]; do
        [ $((SECONDS - began)) -lt "$PATIENCE" ] || wrong "$1: no new block"
        sleep 3
    done
    said "$1: a new block gave key, after $((SECONDS - began)) s"
}
look() { # the page of Alice's site, as an operator sees it
    local curl="curl -s --fail --max-time 20 --cacert operator-ca.pem --cert anna.pem --key anna.key https://$ALICE:9410"
    echo "$curl/ | grep -q '<html'; $curl/status" | at alice >"$work/page"
    python3 - "$work/page" <<'PY'
import json, sys
page = json.load(open(sys.argv[1]))
(link,) = page["links"]
print(f"{'':11}page: {page['title']}, {page['state']}; quantum {link['quantum']}; channel {link['channel']};", len(page["alarms"]), "alarms")
PY
}
# A request from Bob's machine, signed by the lab at Alice's, and installed: MACHINE ROLE NAME KEY CERTIFICATE CA [HOST]
signed() {
    carry "$1" "$5.csr" alice "/root/$3-$2.csr"
    echo "rm -f $3-$2.pem; qnodectl pki sign $2 $3 $3-$2.csr ${7:+--host $7}" | at alice >/dev/null
    carry alice "/root/$3-$2.pem" "$1" /root/answer.pem
    carry alice "/root/qnode-pki/$6.pem" "$1" "$(dirname "$5")/$6.pem"
    echo "qnodectl pki install $2 $3 answer.pem --key-file $4 --ca $(dirname "$5")/$6.pem --to $5.pem" | at "$1"
}

install_from_archive() { # MACHINE
    at "$1" <<END
tar xf $name.tar && cd $name && sha256sum --check --quiet SHA256SUMS
umask 022 && python3 check_machine.py /opt/qnode && python3 -m venv --clear /opt/qnode
/opt/qnode/bin/pip install --quiet --no-index --find-links . 'qnode[zmq,visa,strongswan]'
ln -sf /opt/qnode/bin/qnode /opt/qnode/bin/qnodectl /usr/local/bin/
END
}
service() { # MACHINE
    at "$1" <<'END'
umask 022
cp /opt/qnode/share/qnode/systemd/*@.service /etc/systemd/system/
install -D -m 644 /opt/qnode/share/qnode/systemd/qnode-sysusers.conf /etc/sysusers.d/qnode.conf
systemd-sysusers && systemctl daemon-reload
qnode manual /usr/local/share/man
qnode --version
END
}

step_install() {
    local one
    for one in alice bob; do
        put $one "/root/$name.tar" <"$ARCHIVE"
        install_from_archive $one
        service $one
    done
}

step_setup() {
    at alice <<END
qnodectl pki init turin-lab
qnode setup alice --lab qnode-pki --kme-id kme-alice --peer-kme-id kme-bob --link-name turin --address $ALICE:7400 --host $ALICE \
    --listen $ALICE:8443 --metrics 127.0.0.1:9400 --page 0.0.0.0:9410 --sae encryptor-alice --peer-sae encryptor-bob \
    --fibre tcp://$ALICE:7401 --fibre-peer $BOB
qnodectl pki issue sae encryptor-alice
qnodectl pki issue operator anna
cp qnode-pki/sae-ca.pem qnode-pki/operator-ca.pem .
sed -i 's#\(fibre = "[^"]*"\)#\1, simulation = { speed = $SPEED }#' /etc/qnode/alice.toml
mkdir -p /media/usb && cp /etc/qnode/alice/preshared.key /media/usb/preshared.key
END
    carry alice /media/usb/preshared.key bob /media/usb/preshared.key
    at bob <<END
qnode setup bob --preshared-key /media/usb/preshared.key --kme-id kme-bob --peer-kme-id kme-alice --link-name turin --address $ALICE:7400 \
    --host $BOB --listen $BOB:8443 --metrics 127.0.0.1:9400 --page 0.0.0.0:9410 --sae encryptor-bob --peer-sae encryptor-alice \
    --fibre tcp://$ALICE:7401
qnodectl pki request sae encryptor-bob
sed -i 's#\(fibre = "[^"]*"\)#\1, simulation = { speed = $SPEED }#' /etc/qnode/bob.toml
END
    certificates bob
    for one in alice bob; do
        echo "qnodectl preshared fingerprint /etc/qnode/$one/preshared.key; qnode check /etc/qnode/$one.toml" | at $one
    done
}
certificates() { # MACHINE-OF-BOB
    signed "$1" node kme-bob /etc/qnode/bob/peer-tls.key /etc/qnode/tls/link-bob link-ca
    signed "$1" kme kme-bob /etc/qnode/bob/etsi014-tls.key /etc/qnode/tls/kme-bob sae-ca "$BOB"
    signed "$1" page kme-bob /etc/qnode/bob/page-tls.key /etc/qnode/tls/page-bob operator-ca "$BOB"
    signed "$1" sae encryptor-bob /root/encryptor-bob.key /root/encryptor-bob sae-ca
    echo "chmod 644 /etc/qnode/tls/*.pem" | at "$1"
}

step_start() {
    local one
    for one in alice bob; do
        echo "systemctl enable --now qnode@$one && systemctl is-active qnode@$one" | at $one &
    done
    wait
    first_key "first key"
    for one in alice bob; do
        echo "qnodectl preshared wipe /etc/qnode/$one/preshared.key /media/usb/preshared.key
qnodectl status | head -n 12 || true
systemd-analyze security --no-pager --threshold=15 qnode@$one | tail -n 1" | at $one
    done
}

step_encryptors() {
    at alice <<'END'
qnodectl pki issue sae encryptor-3
qnodectl saes add encryptor-3 encryptor-4
END
    at bob <<'END'
qnodectl pki request sae encryptor-4
qnodectl saes add encryptor-4 encryptor-3
END
    signed bob sae encryptor-4 /root/encryptor-4.key /root/encryptor-4 sae-ca
    local _ key_id
    for _ in $(seq 20); do key_id=$(exchange encryptor-3 encryptor-4) && break; sleep 1; done
    said "encryptors added without a restart: key $key_id is the same at both sites"
    echo "qnodectl saes list" | at alice
    echo "qnodectl saes remove encryptor-3" | at alice
    echo "qnodectl saes remove encryptor-4" | at bob
    key_id=$(echo "curl -s -o /dev/null -w '%{http_code}' --cacert sae-ca.pem --cert encryptor-3.pem --key encryptor-3.key \
https://$ALICE:8443/api/v1/keys/encryptor-4/enc_keys" | at alice)
    [ "$key_id" = 401 ] || wrong "a removed encryptor gets $key_id"
    said "encryptors removed: $key_id"
}

serial() { echo "openssl s_client -connect $ALICE:8443 </dev/null 2>/dev/null | openssl x509 -noout -serial" | at alice || true; }
step_rotation() {
    local before after polls=$work/polls
    : >"$polls"
    while [ ! -e "$work/enough" ]; do
        if exchange encryptor-alice encryptor-bob >/dev/null; then echo ok; else echo lost; fi >>"$polls"
        sleep 0.5
    done &
    sleep 5
    before=$(serial)
    echo "qnodectl pki renew /etc/qnode/tls/kme-alice.pem && systemctl reload qnode@alice" | at alice
    after=$(serial)
    sleep 5
    touch "$work/enough"
    wait
    [ -n "$after" ] && [ "$before" != "$after" ] || wrong "the renewed certificate is not served"
    said "certificate renewed, $before before, $after after, $(grep -c ok "$polls") keys fetched at both sites meanwhile, $(grep -c lost "$polls" || true) lost"
    ! grep -q lost "$polls"
}

step_watchdog() {
    at alice <<'END'
restarts() { systemctl show -p NRestarts --value qnode@alice; }
before=$(restarts) began=$SECONDS results=
kill -STOP "$(systemctl show -p MainPID --value qnode@alice)"
until [ "$(restarts)" -gt "$before" ] && systemctl is-active -q qnode@alice; do
    [ $((SECONDS - began)) -lt 600 ] || { echo "nobody ends a stopped daemon"; exit 1; }
    results+=" $(systemctl show -p Result --value qnode@alice)"
    sleep 0.5
done
grep -q watchdog <<<"$results" || { echo "it was not the watchdog:$results"; exit 1; }
echo "a stopped daemon was ended by the watchdog, and ran again after $((SECONDS - began)) s"
END
    first_key "after the watchdog"
    new_block "after the watchdog"
}

step_restore() {
    local answer key_id
    answer=$(as alice encryptor-alice "https://$ALICE:8443/api/v1/keys/encryptor-bob/enc_keys")
    key_id=$(field key_ID <<<"$answer")
    [ -n "$key_id" ] || wrong "no key before the backup: $(field message <<<"$answer")"
    at bob <<'END'
qnodectl backup save /root/bob.tar
qnodectl backup inspect /root/bob.tar --store-key /etc/qnode/bob/store.key
END
    carry bob /root/bob.tar new /root/bob.tar
    carry bob /etc/qnode/bob/store.key new /etc/qnode/bob/store.key
    echo "systemctl disable --now qnode@bob; rm -rf /var/lib/qnode /var/lib/qnode-anchor" | at bob
    $MOVE
    put new "/root/$name.tar" <"$ARCHIVE"
    install_from_archive new
    service new
    at new <<END
mkdir -p /etc/qnode/tls && chmod 755 /etc/qnode /etc/qnode/tls
tar -xOf /root/bob.tar site.toml | install -m 0644 /dev/stdin /etc/qnode/bob.toml
install -m 0600 /dev/null /etc/qnode/bob/preshared.key
qnodectl pki request node kme-bob --key-file /etc/qnode/bob/peer-tls.key --out /etc/qnode/tls/link-bob
qnodectl pki request kme kme-bob --host $BOB --key-file /etc/qnode/bob/etsi014-tls.key --out /etc/qnode/tls/kme-bob
qnodectl pki request page kme-bob --host $BOB --key-file /etc/qnode/bob/page-tls.key --out /etc/qnode/tls/page-bob
qnodectl pki request sae encryptor-bob
END
    certificates new
    at new <<'END'
systemctl stop qnode@bob
install -d -o qnode -g qnode -m 0700 /var/lib/qnode/bob /var/lib/qnode-anchor/bob
qnodectl backup restore /root/bob.tar --config /etc/qnode/bob.toml
systemctl start qnode@bob
END
    first_key "after the restore" new
    answer=$(as new encryptor-bob "https://$BOB:8443/api/v1/keys/encryptor-alice/dec_keys?key_ID=$key_id")
    [ -z "$(field key <<<"$answer")" ] || wrong "a key from before the loss came back"
    said "a key from before the loss: $(field message <<<"$answer")"
    echo "qnodectl audit verify" | at new || true
}

shared_fibre() { # MACHINE SITE
    at "$1" <<END
install -d -o qnode -g qnode -m 0700 $FIBRE
mkdir -p /etc/systemd/system/qnode@$2.service.d
printf '[Service]\\nReadWritePaths=$FIBRE\\n' >/etc/systemd/system/qnode@$2.service.d/fibre.conf
sed -i 's#fibre = "tcp:[^"]*"#fibre = "$FIBRE/fibre.sock"#; s#, fibre_peer = "[^"]*"##' /etc/qnode/$2.toml
cat >>/etc/qnode/$2.toml <<'TOML'

[link.estimation]
asymmetry_bound = "joint"

[link.source]
mu_uncertainty = [0.0, 0.0]
TOML
qnode check /etc/qnode/$2.toml | tail -n 1
systemctl daemon-reload && systemctl restart qnode@$2
END
}
given() { as alice encryptor-alice "https://$ALICE:8443/api/v1/keys/encryptor-bob/enc_keys"; }
fetched_later() { # ANSWER-OF-ALICE: Bob fetches the key that waited for him
    local same
    same=$(as bob encryptor-bob "https://$BOB:8443/api/v1/keys/encryptor-alice/dec_keys?key_ID=$(field key_ID <<<"$1")")
    [ -n "$(field key <<<"$1")" ] && [ "$(field key <<<"$same")" = "$(field key <<<"$1")" ] || wrong "a key was lost: $(field message <<<"$same")"
    said "key $(field key_ID <<<"$1"), given before, is the same at Bob's site"
}
connected() { echo "journalctl -u qnode@alice -g link.connected -o cat -n 1" | at alice; }
step_upgrade() {
    local waits
    shared_fibre alice alice
    shared_fibre bob bob
    first_key "with the parameters of protocol 1"
    waits=$(given)
    local wheel
    for wheel in "$OLD"/*.whl; do put bob "/root/old/$(basename "$wheel")" <"$wheel"; done
    at bob <<END
systemctl stop qnode@bob
qnodectl rollback /etc/qnode/bob.toml
mv /opt/qnode /opt/qnode-0.2.0
(umask 022; python3 -m venv /opt/qnode; cd $name; /opt/qnode/bin/pip install --quiet --no-index --find-links . /root/old/*.whl)
/opt/qnode/bin/python3 - /etc/qnode/bob.toml <<'PY'
# What 0.1.0 does not know: the encryptors' file and the page.
import pathlib, re, sys
file = pathlib.Path(sys.argv[1])
text = re.sub(r"(?m)^saes_file .*\n", "", file.read_text())
file.write_text(re.sub(r"(?ms)^\[page(\.tls)?\]\n.*?(?=^\[)", "", text))
PY
/opt/qnode/bin/pip list 2>/dev/null | grep ^qnode
systemctl start qnode@bob
END
    first_key "Bob at 0.1.0"
    new_block "Bob at 0.1.0"
    connected
    fetched_later "$waits"
    waits=$(given)
    at bob <<'END'
systemctl stop qnode@bob
cp -p /etc/qnode/bob.toml /etc/qnode/bob.toml.0.1.0
cp -a /opt/qnode /opt/qnode-0.1.0
END
    install_from_archive bob
    at bob <<'END'
qnode check /etc/qnode/bob.toml | tail -n 1
systemctl start qnode@bob
qnode --version
END
    first_key "Bob upgraded"
    new_block "Bob upgraded"
    connected
    fetched_later "$waits"
}

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
[ $# -gt 0 ] || set -- install setup start encryptors rotation watchdog upgrade restore
for step in "$@"; do
    said "== $step"
    began=$SECONDS
    "step_$step"
    [ "$step" = install ] || [ "$step" = setup ] || look
    said "-- $step took $((SECONDS - began)) s"
done
[ $SECONDS -lt 3600 ] || wrong "it took $((SECONDS / 60)) minutes"
said "all of it took $((SECONDS / 60)) min $((SECONDS % 60)) s"
