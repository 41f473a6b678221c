"""A small virtual machine that runs a program of this machine under an unpacked kernel package of Debian.

Its root file system is this one, which it cannot change; it has no network. The processor is emulated: slow.
"""

import gzip
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

ROOT_MODULES: Final = ("virtio_pci", "9pnet_virtio", "9p", "overlay")


def needed_modules(modules: Path) -> list[str]:
    """Return the files of `ROOT_MODULES` and of all that they need."""
    needs = {}
    for line in (modules / "modules.dep").read_text().splitlines():
        file, _, others = line.partition(":")
        needs[Path(file).name.partition(".")[0].replace("-", "_")] = [file, *others.split()]
    return sorted({file for name in ROOT_MODULES for file in needs[name]})


def archive(files: dict[str, bytes], folders: list[str]) -> bytes:
    """Return an initial file system: cpio in its "newc" form."""
    parts = []

    def add(name: str, mode: int, content: bytes) -> None:
        encoded = name.encode() + b"\0"
        fields = [0, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(encoded), 0]
        head = b"070701" + b"".join(b"%08X" % field for field in fields) + encoded
        for part in (head, content):
            parts.append(part + bytes(-len(part) % 4))

    for folder in folders:
        add(folder, 0o040755, b"")
    for name, content in files.items():
        add(name, 0o100755, content)
    add("TRAILER!!!", 0, b"")
    return b"".join(parts)


def init_script(arguments: list[str]) -> str:
    """Return the first program of the machine: it turns to a changeable copy of this file system."""
    paths = f"PYTHONPATH={os.pathsep.join(sys.path[1:])} PATH={os.environ['PATH']}"
    program = f"{sys.executable} -u {' '.join(arguments)}"
    inside = f"{paths} HOME=/root {program}; echo o > /proc/sysrq-trigger; read"
    return f"""#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc; mount -t sysfs sysfs /sys; mount -t devtmpfs dev /dev
for module in {" ".join(ROOT_MODULES)}; do modprobe $module; done
mount -t tmpfs tmpfs /mnt; mkdir /mnt/low /mnt/up /mnt/work
mount -t 9p -o trans=virtio,version=9p2000.L,msize=262144,ro host /mnt/low
mount -t overlay overlay -o lowerdir=/mnt/low,upperdir=/mnt/up,workdir=/mnt/work /root
for place in proc sys dev; do mount --move /$place /root/$place; done
exec switch_root /root /bin/bash -c "{inside}"
"""


def run_machine(folder: Path, arguments: list[str], *, passed: str, limit_s: float) -> int:
    """Boot, run this Python with ``arguments`` inside, show what it says, and return 0 if it said ``passed``.

    ``folder`` holds ``boot/vmlinuz-*`` and ``lib/modules/*``.
    """
    [kernel], [modules] = (folder / "boot").glob("vmlinuz-*"), (folder / "lib/modules").iterdir()
    kept = f"lib/modules/{modules.name}"
    files = {f"{kept}/{file}": (modules / file).read_bytes() for file in needed_modules(modules)}
    files |= {f"{kept}/{path.name}": path.read_bytes() for path in modules.glob("modules.*")}
    files |= {"bin/busybox": Path("/usr/bin/busybox").read_bytes(), "init": init_script(arguments).encode()}
    folders = {str(parent) for name in files for parent in Path(name).parents} - {"."}
    folders |= {"proc", "sys", "dev", "mnt", "root"}
    with tempfile.NamedTemporaryFile() as initial:
        initial.write(gzip.compress(archive(files, sorted(folders)), 1))
        initial.flush()
        machine = ["qemu-system-x86_64", "-accel", "tcg", "-cpu", "max", "-machine", "q35", "-m", "1024"]
        boot = ["-kernel", str(kernel), "-initrd", initial.name, "-append", "console=ttyS0 panic=1 quiet"]
        screen = ["-display", "none", "-serial", "stdio", "-monitor", "none", "-no-reboot", "-net", "none"]
        share = "local,path=/,mount_tag=host,security_model=passthrough,readonly=on,multidevs=remap"
        command = [*machine, *boot, *screen, "-virtfs", share]
        pipe, null = subprocess.PIPE, subprocess.DEVNULL
        try:
            said = subprocess.run(command, stdout=pipe, stdin=null, timeout=limit_s).stdout
        except subprocess.TimeoutExpired as error:
            said = (error.stdout or b"") + f"\nstopped after {limit_s:g} s".encode()
    print(said.decode(errors="replace"))
    return 0 if passed.encode() in said else 1
