"""How the testbed starts Debian's InfluxDB 1.x: all in one folder, nothing reported outside."""

from pathlib import Path

_CONFIGURATION = """\
reporting-disabled = true
# The door for backups; nobody uses it here.
bind-address = "127.0.0.1:0"

[meta]
dir = "{folder}/meta"

[data]
dir = "{folder}/data"
wal-dir = "{folder}/wal"
# What is acknowledged is on the disk.
wal-fsync-delay = "0s"
query-log-enabled = false

[monitor]
store-enabled = false

[subscriber]
enabled = false

[http]
bind-address = "{address}"
log-enabled = false

[logging]
level = "warn"
suppress-logo = true
"""


def influxd_command(folder: Path, address: str) -> list[str]:
    """Write the configuration of a server into ``folder``, and return the command that runs it.

    ``address``: HOST:PORT of its HTTP API.
    """
    folder.mkdir(parents=True, exist_ok=True)
    configuration = folder / "influxd.conf"
    configuration.write_text(_CONFIGURATION.format(folder=folder.resolve(), address=address))
    return ["influxd", "-config", str(configuration)]
