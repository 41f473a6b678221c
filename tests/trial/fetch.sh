#!/usr/bin/env bash
# Waits until the link has a key, fetches it at Alice's and the same at Bob's, and compares. Exit 0: they are equal.
#   fetch.sh DIR URL-OF-ALICE URL-OF-BOB SECONDS [COMMAND-THAT-RUNS-ALICES-CURL -- COMMAND-THAT-RUNS-BOBS]
set -euo pipefail
etc=$1 alice=$2 bob=$3 seconds=$4
shift 4
at_alice=() at_bob=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do at_alice+=("$1"); shift; done
[ $# -eq 0 ] || { shift; at_bob=("$@"); }

as() { # SITE URL
    curl -s --max-time 60 --cacert "$etc/tls/sae-ca.pem" --cert "$etc/sae/encryptor-$1.pem" \
        --key "$etc/sae/encryptor-$1.key" "$2"
}
export -f as
export etc

field() { sed -n "s/.*\"$1\": *\"\([^\"]*\)\".*/\1/p"; }

began=$(date +%s)
while :; do
    answer=$("${at_alice[@]}" bash -c 'as alice "$1"' - "$alice/api/v1/keys/encryptor-bob/enc_keys" || true)
    key_id=$(field key_ID <<<"$answer")
    [ -z "$key_id" ] || break
    [ $(($(date +%s) - began)) -lt "$seconds" ] || { echo "no key in $seconds s: $answer"; exit 1; }
    sleep 5
done
echo "Alice: key $key_id after $(($(date +%s) - began)) s"
same=$("${at_bob[@]}" bash -c 'as bob "$1"' - "$bob/api/v1/keys/encryptor-alice/dec_keys?key_ID=$key_id")
[ "$(field key_ID <<<"$same")" = "$key_id" ] || { echo "Bob: $same"; exit 1; }
[ "$(field key <<<"$same" | sha256sum)" = "$(field key <<<"$answer" | sha256sum)" ] || { echo "DIFFERENT"; exit 1; }
echo "Bob:   key $key_id is the same"
again=$("${at_bob[@]}" bash -c 'as bob "$1"' - "$bob/api/v1/keys/encryptor-alice/dec_keys?key_ID=$key_id")
[ -z "$(field key <<<"$again")" ] || { echo "DELIVERED TWICE"; exit 1; }
echo "Bob:   asked again: $(field message <<<"$again")"
