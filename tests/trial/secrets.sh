#!/usr/bin/env bash
# Makes what two sites need beside their site files, as docs/two-hosts.md says it: two authorities, a certificate of each
# for each site, client certificates of two encryptors, store keys and the pre-shared key.
#   secrets.sh DIR [NAME-OR-ADDRESS-OF-ALICE [OF-BOB]]      DIR becomes what /etc/qnode is
set -euo pipefail
mkdir -p "$1"
cd "$1"
declare -A host=([alice]="${2:-127.0.0.1}" [bob]="${3:-127.0.0.1}")
umask 077
mkdir -p tls alice bob sae

authority() { # NAME
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 365 -subj "/CN=$1" \
        -keyout "$1.key" -out "tls/$1.pem" 2>/dev/null
}

issue() { # AUTHORITY NAME CERTIFICATE KEY [MORE-NAMES]
    openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj "/CN=$2" -keyout "$4" 2>/dev/null |
        openssl x509 -req -days 365 -CA "tls/$1.pem" -CAkey "$1.key" -CAcreateserial -out "$3" \
            -extfile <(echo "subjectAltName=DNS:$2${5:+,$5}") 2>/dev/null
}

authority link-ca
authority sae-ca
openssl rand -out alice/preshared.key 16384
cp alice/preshared.key bob/preshared.key
for site in alice bob; do
    openssl rand -out "$site/store.key" 32
    issue link-ca "kme-$site" "tls/link-$site.pem" "$site/peer-tls.key"
    kind=DNS
    [[ ${host[$site]} =~ ^[0-9.]+$|: ]] && kind=IP
    issue sae-ca "kme-$site" "tls/kme-$site.pem" "$site/etsi014-tls.key" "$kind:${host[$site]}"
    issue sae-ca "encryptor-$site" "sae/encryptor-$site.pem" "sae/encryptor-$site.key"
done
chmod 755 . tls
chmod 644 tls/*.pem
