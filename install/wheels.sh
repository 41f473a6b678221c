#!/usr/bin/env bash
# One archive with qnode, its drivers and every locked package as wheels, for machines without a network that have
# this Python, this processor and this system's release or a newer one. Needs a network, and git.
#   install/wheels.sh PYTHON        the Python of an environment with the packages of requirements.lock
set -euo pipefail
python=$(realpath --no-symlinks "$1")
cd "$(dirname "$0")/.."
SOURCE_DATE_EPOCH=$(git log -1 --format=%ct) # time stamps are those of the commit
export SOURCE_DATE_EPOCH
kind=$("$python" -c 'import sys, sysconfig; print("cp%d%d-" % sys.version_info[:2] + sysconfig.get_platform())')
name=qnode-$("$python" -c 'import qnode; print(qnode.__version__)')-$kind
rm -rf "dist/$name" "dist/$name.tar"
mkdir -p "dist/$name"
"$python" -m pip download --quiet --require-hashes --no-deps --only-binary :all: -r requirements.lock -d "dist/$name"
"$python" -m pip wheel --quiet --no-deps --no-build-isolation -w "dist/$name" .
cp install/check_machine.py "dist/$name/"
(cd "dist/$name" && sha256sum -- * >SHA256SUMS)
tar --sort=name --mtime="@$SOURCE_DATE_EPOCH" --owner=0 --group=0 --numeric-owner --mode=u=rwX,go=rX -C dist -cf "dist/$name.tar" "$name"
sha256sum "dist/$name.tar"
