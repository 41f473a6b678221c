#!/usr/bin/env bash
# A Debian package of the wheels of install/wheels.sh, for the Debian release of this machine: a virtual environment at
# /opt/qnode on the Python of the release, units, manual pages, completion, documentation (docs/operations.md).
#   install/deb.sh FOLDER PIP       the folder of wheels, and a pip that may run on another Python
set -euo pipefail
wheels=$(realpath "$1") pip=$(realpath --no-symlinks "$2")
cd "$(dirname "$0")/.."
unset PYTHONPATH
umask 022
SOURCE_DATE_EPOCH=$(git log -1 --format=%ct) # time stamps are those of the commit
export SOURCE_DATE_EPOCH PYTHONDONTWRITEBYTECODE=1
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
chmod 755 "$root"
opt=$root/opt/qnode doc=$root/usr/share/doc/qnode

/usr/bin/python3 install/check_machine.py "$root" # the wheels may be for another Python than the release's
/usr/bin/python3 "$wheels/check_machine.py" "$root"
/usr/bin/python3 -m venv --without-pip "$opt"
"$pip" --python "$opt/bin/python3" install --quiet --no-compile --no-index --find-links "$wheels" \
    'qnode[zmq,visa,strongswan]'
rm "$opt"/bin/[Aa]ctivate*
grep -rlI --null -F "$root" "$opt" | xargs --null sed -i "s|$root||g" # the final place, in scripts and pyvenv.cfg
# Hashes of scripts are those from before: of the folder of this build, another one each time.
find "$opt" -path '*.dist-info/RECORD' -exec sed -i 's|^\(\.\./\.\./\.\./bin/[^,]*\),.*|\1,,|' {} +
# Bytecode that needs no time stamps, so that nobody, not even root, writes into the package's folders.
"$opt/bin/python3" -m compileall -q --invalidation-mode unchecked-hash -s "$root" -p / "$opt/lib" >/dev/null || true

install -D -m 644 -t "$root/usr/lib/systemd/system" systemd/*@.service
install -D -m 644 systemd/qnode-sysusers.conf "$root/usr/lib/sysusers.d/qnode.conf"
install -d "$root/etc/qnode" "$root/etc/qnode-agent" "$root/usr/bin" "$doc"
ln -s /opt/qnode/bin/qnode /opt/qnode/bin/qnodectl "$root/usr/bin/"
cp -r README.md SECURITY.md CHANGELOG.md docs "$doc/"
ln -s /opt/qnode/share/qnode "$doc/examples" # config, systemd
cp LICENSE "$doc/copyright"
"$opt/bin/python3" -m qnode manual "$root/usr/share/man" >/dev/null
find "$root/usr/share/man" -type f -exec gzip --best --no-name {} +
while read -r shell program place; do
    install -d "$(dirname "$root/usr/share/$place")"
    "$opt/bin/python3" -m qnode completion "$shell" "$program" >"$root/usr/share/$place"
done <<'EOF'
bash qnode bash-completion/completions/qnode
bash qnodectl bash-completion/completions/qnodectl
zsh qnode zsh/vendor-completions/_qnode
zsh qnodectl zsh/vendor-completions/_qnodectl
fish qnode fish/vendor_completions.d/qnode.fish
fish qnodectl fish/vendor_completions.d/qnodectl.fish
EOF
if grep -rqF "$root" "$root"; then echo "a file names the folder of this build" >&2; exit 1; fi

chmod -R u=rwX,go=rX "$root"
version=$("$opt/bin/python3" -c 'import qnode; print(qnode.__version__)')
# A package that is not made from the release's tag is older than the release.
if [ "$(git describe --tags --always --dirty)" = "v$version" ]; then
    version=$version-1
else
    version=$version~$(date --utc --date="@$SOURCE_DATE_EPOCH" +%Y%m%d.%H%M%S).$(cat "$opt"/lib/python3*/site-packages/qnode/commit | tr - .)
fi
architecture=$(dpkg --print-architecture)
install -D -m 755 -t "$root/DEBIAN" install/debian/postinst install/debian/prerm install/debian/postrm
"$opt/bin/python3" - "$wheels" "$version" "$architecture" "$(du -sk "$root" | cut -f1)" >"$root/DEBIAN/control" <<'EOF'
import sys
from pathlib import Path

sys.path.insert(0, "install")
from check_machine import least_glibc

wheels, version, architecture, size_kb = sys.argv[1:]
major, minor = sys.version_info[:2]
glibc = max(least_glibc(path.name) for path in Path(wheels).glob("*.whl"))
print(f"""\
Package: qnode
Version: {version}
Architecture: {architecture}
Maintainer: the qnode developers
Installed-Size: {size_kb}
Depends: python3 (>= {major}.{minor}), python3 (<< {major}.{minor + 1}), libc6 (>= {glibc[0]}.{glibc[1]}), systemd, init-system-helpers
Recommends: libusb-1.0-0
Section: net
Priority: optional
Description: node software of a quantum key distribution link
 The daemon of one site of a QKD link, drivers, key delivery by ETSI GS QKD 014,
 ETSI GS QKD 004 and Cisco SKIP, and agents beside encryptors.""")
EOF
(cd "$root" && find . -type f -not -path './DEBIAN/*' -printf '%P\0' | sort --zero-terminated | xargs --null md5sum >DEBIAN/md5sums)
package=dist/qnode_${version}_$architecture.deb
dpkg-deb --root-owner-group -Zzstd --build "$root" "$package" >/dev/null
sha256sum "$package" # the same for the same commit, wheels and system
