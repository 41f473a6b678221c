#!/usr/bin/env bash
# Reloads both running services as an operator does, while an encryptor at each site fetches a key every second: a renewed
# certificate, a new pair of encryptors, a CRL that is no CRL. Called by services.sh once there are keys.
#   reload.sh DIR URL-OF-ALICE URL-OF-BOB
set -euo pipefail
etc=$1 alice=$2 bob=$3
polls=$(mktemp)

as() { # SAE URL
    curl -s --max-time 20 --cacert "$etc/tls/sae-ca.pem" --cert "$etc/sae/$1.pem" --key "$etc/sae/$1.key" "$2"
}

field() { sed -n "s/.*\"$1\": *\"\([^\"]*\)\".*/\1/p"; }

exchange() { # SAE-AT-ALICE SAE-AT-BOB
    local answer key_id same
    answer=$(as "$1" "$alice/api/v1/keys/$2/enc_keys") || return 1
    key_id=$(field key_ID <<<"$answer")
    [ -n "$key_id" ] || { echo "$answer"; return 1; }
    same=$(as "$2" "$bob/api/v1/keys/$1/dec_keys?key_ID=$key_id") || return 1
    [ "$(field key <<<"$same")" = "$(field key <<<"$answer")" ]
}

poll() {
    while :; do
        if exchange encryptor-alice encryptor-bob >/dev/null; then echo ok; else echo "LOST $(date +%T)"; fi >>"$polls"
        sleep 1
    done
}

certificate() { # NAME KEY CERTIFICATE MORE-NAMES: for a key that is there
    openssl req -new -key "$2" -subj "/CN=$1" 2>/dev/null | openssl x509 -req -days 365 -CA "$etc/tls/sae-ca.pem" \
        -CAkey "$etc/sae-ca.key" -CAcreateserial -out "$3" -extfile <(echo "subjectAltName=DNS:$1$4") 2>/dev/null
    chmod 644 "$3"
}

served() { # URL: the fingerprint of the certificate that is served
    { openssl s_client -connect "${1#https://}" </dev/null 2>/dev/null || true; } | openssl x509 -noout -fingerprint -sha256
}

poll &
poller=$!
trap 'kill $poller 2>/dev/null || true' EXIT
sleep 5

before=$(served "$alice")
certificate kme-alice "$etc/alice/etsi014-tls.key" "$etc/tls/kme-alice.pem" ",IP:127.0.0.1"
systemctl reload qnode@alice
[ "$(served "$alice")" != "$before" ] || { echo "the renewed certificate is not served"; exit 1; }
echo "a renewed certificate is served"
sleep 5

for pair in alice:bob bob:alice; do
    own=${pair%:*} other=${pair#*:}
    openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out "$etc/sae/new-$own.key" 2>/dev/null
    certificate "new-$own" "$etc/sae/new-$own.key" "$etc/sae/new-$own.pem" ""
    for file in alice bob; do # an array may go on at the end of the file
        printf '\n[[etsi014.sae]]\nsae_id = "new-%s"\nkme_id = "kme-%s"\npeers = ["new-%s"]\n' "$own" "$own" "$other" \
            >>"$etc/$file.toml"
    done
done
systemctl reload qnode@alice qnode@bob
for _ in $(seq 20); do exchange new-alice new-bob >/dev/null && break; sleep 1; done
exchange new-alice new-bob || { echo "the new pair gets no key"; exit 1; }
echo "a new pair of encryptors has keys"
sleep 5

cp "$etc/alice.toml" "$etc/alice.before"
echo "no CRL" >"$etc/tls/empty.crl"
sed -i "s#^certificate = \"/etc/qnode/tls/kme-alice.pem\"#&\ncrl = \"$etc/tls/empty.crl\"#" "$etc/alice.toml"
systemctl reload qnode@alice
sleep 2
systemctl is-active -q qnode@alice
status=$(/opt/qnode/bin/qnodectl --socket /run/qnode/alice/control.sock status || true)
grep -q node.reload_failed <<<"$status" || { echo "the wrong CRL is not shown:"; echo "$status"; exit 1; }
echo "a CRL that is no CRL is shown, and all goes on"
mv "$etc/alice.before" "$etc/alice.toml"
systemctl reload qnode@alice
sleep 5

kill $poller
echo "$(grep -c ok "$polls") keys fetched at both sites meanwhile, $(grep -c LOST "$polls" || true) lost"
! grep LOST "$polls"
