"""What a testbed runs that is not qnode: programs of Debian, packages of Python, and their versions."""

import importlib.util
import platform
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import qnode
from qnode.errors import ConfigError
from qnode.testbed.tunnels import KITS, TunnelName

PROGRAMS: Final = {"ip": "iproute2", "ping": "iputils-ping", "iperf3": "iperf3", "influxd": "influxdb"}
_VERSIONS: Final = {"InfluxDB": ("influxd", "version"), "iperf3": ("iperf3", "--version")}
PACKAGES: Final = ("pymodbus", "asyncua", "matplotlib")
_PATIENCE_S: Final = 10.0


def check_needs(tunnel: TunnelName) -> None:
    """Refuse to start without everything that the testbed runs.

    Raises:
        ConfigError: it names what is missing, with the command that installs it.
    """
    wanted: Mapping[str, str] = {**PROGRAMS, **KITS[tunnel].programs}
    packages = sorted({package for program, package in wanted.items() if not is_there(program)})
    if packages:
        raise ConfigError(f"programs are missing: apt-get install {' '.join(packages)}")
    extras = {**dict.fromkeys(PACKAGES, "testbed"), **KITS[tunnel].packages}
    missing = [name for name in extras if importlib.util.find_spec(name) is None]
    if missing:
        wanted_extras = ",".join(sorted({extras[name] for name in missing}))
        raise ConfigError(f"{', '.join(missing)}: not installed; pip install 'qnode[{wanted_extras}]'")


def is_there(program: str) -> bool:
    """Return whether a program is in the PATH, or a file at its place."""
    return Path(program).is_file() if program.startswith("/") else shutil.which(program) is not None


def versions(tunnel: TunnelName) -> dict[str, str]:
    """Return the version of each part, as it says it itself."""
    found = {
        "qnode": qnode.__version__,
        "Python": platform.python_version(),
        "kernel": f"{platform.release()} {platform.machine()}",
    }
    programs = {KITS[tunnel].title: tuple(KITS[tunnel].version), **_VERSIONS}
    return found | {name: _first_line(command) for name, command in programs.items()}


def _first_line(command: tuple[str, ...]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_PATIENCE_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        print(f"{command[0]}: {error}", file=sys.stderr)
        return "unknown"
    return next(iter((done.stdout or done.stderr).strip().splitlines()), "unknown")
