#!/usr/bin/env bash
# Reloads both running services as an operator does, while an encryptor at each site fetches a key every second: a renewed
# certificate, a new pair of encryptors, a CRL that is no CRL, a CRL that revokes one of the new pair. Called by services.sh once
# there are keys.
#   reload.sh DIR LAB URL-OF-ALICE URL-OF-BOB
set -euo pipefail
etc=$1 lab=$2 alice=$3 bob=$4
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

control() { # SITE WORDS...
    qnodectl --socket "/run/qnode/$1/control.sock" "${@:2}"
}

served() { # URL: the fingerprint of the certificate that is served
    { openssl s_client -connect "${1#https://}" </dev/null 2>/dev/null || true; } | openssl x509 -noout -fingerprint -sha256
}

poll &
poller=$!
trap 'kill $poller 2>/dev/null || true' EXIT
sleep 5

before=$(served "$alice")
qnodectl pki renew "$etc/tls/kme-alice.pem" --lab "$lab"
systemctl reload qnode@alice
[ "$(served "$alice")" != "$before" ] || { echo "the renewed certificate is not served"; exit 1; }
echo "a renewed certificate is served"
sleep 5

for pair in alice:bob bob:alice; do
    own=${pair%:*} other=${pair#*:}
    qnodectl pki issue sae "new-$own" --lab "$lab" --out "$etc/sae/new-$own"
    control "$own" saes add "new-$own" "new-$other"
done
for _ in $(seq 20); do exchange new-alice new-bob >/dev/null && break; sleep 1; done
exchange new-alice new-bob || { echo "the new pair gets no key"; exit 1; }
echo "a new pair of encryptors has keys"
sleep 5

mv "$etc/tls/sae-ca.crl" "$etc/tls/before.crl"
echo "no CRL" >"$etc/tls/sae-ca.crl"
if control alice reload; then echo "a CRL that is no CRL is taken"; exit 1; fi
sleep 2
systemctl is-active -q qnode@alice
status=$(control alice status || true)
grep -q node.reload_failed <<<"$status" || { echo "the wrong CRL is not shown:"; echo "$status"; exit 1; }
echo "a CRL that is no CRL is shown, and all goes on"
mv "$etc/tls/before.crl" "$etc/tls/sae-ca.crl"

qnodectl pki revoke "$etc/sae/new-alice.pem" --lab "$lab"
as new-alice "$alice/api/v1/keys/new-bob/status" >/dev/null
cp "$lab/sae-ca.crl" "$etc/tls/fetched.crl"
mv "$etc/tls/fetched.crl" "$etc/tls/sae-ca.crl"
control alice reload
if as new-alice "$alice/api/v1/keys/new-bob/status"; then echo "a revoked encryptor is admitted"; exit 1; fi
echo "a revoked encryptor is refused"
for site in alice bob; do control "$site" saes remove "new-$site"; done
sleep 5

kill $poller
echo "$(grep -c ok "$polls") keys fetched at both sites meanwhile, $(grep -c LOST "$polls" || true) lost"
! grep LOST "$polls"
