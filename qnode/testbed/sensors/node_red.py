"""Node-RED with one flow for the picture: the current of the last hour, drawn from the database as an SVG.

The flow uses nodes of Node-RED's own only. It reads and never writes, so it may be away at any time.
"""

import json
import shutil
import urllib.parse
from pathlib import Path
from typing import Final

from qnode.errors import ConfigError
from qnode.testbed.sensors.influxdb import READINGS

VERSION: Final = "4.1.8"
PICTURE: Final = "/current"
# Means of five seconds: 720 points at most.
_QUERY: Final = (
    f"SELECT mean(current_l1_a) FROM {READINGS} WHERE time > now() - 60m GROUP BY time(5s) fill(none)"
)
_DRAW: Final = """
const series = ((msg.payload.results || [{}])[0].series || [{values: []}])[0].values;
const most = Math.max(1, ...series.map(point => point[1]));
const now = Date.now();
const points = series.map(point =>
    `${(800 * (1 - (now - point[0]) / 3600000)).toFixed(1)},${(280 - 260 * point[1] / most).toFixed(1)}`);
msg.payload = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 800 300" font-family="sans-serif">'
    + `<text x="4" y="14">current L1, last hour, up to ${most.toFixed(1)} A (${series.length} points)</text>`
    + `<polyline fill="none" stroke="#06c" points="${points.join(' ')}"/></svg>`;
msg.headers = {'Content-Type': 'image/svg+xml'};
msg.statusCode = 200;
return msg;
"""
# The editor is off, and neither usage nor versions are reported to outside.
_SETTINGS: Final = """\
module.exports = {{
    uiHost: "{host}", uiPort: {port}, httpAdminRoot: false, userDir: {folder}, flowFile: "flows.json",
    credentialSecret: false, telemetry: {{enabled: false, updateNotification: false}},
    logging: {{console: {{level: "warn", metrics: false, audit: false}}}},
}};
"""


def check_node_red(installed: Path) -> None:
    """Make sure that Node-RED can be started from the folder ``installed``.

    Raises:
        ConfigError: it is not there; the message says how to install it.
    """
    if shutil.which("node") is None:
        raise ConfigError("--node-red: node is missing: apt-get install nodejs npm")
    if not _program(installed).exists():
        raise ConfigError(
            f"--node-red: no Node-RED in {installed}: npm install --prefix {installed} node-red@{VERSION}"
        )


def node_red_command(
    installed: Path, folder: Path, address: tuple[str, int], url: str, database: str
) -> list[str]:
    """Write settings and flow into ``folder``, and return the command; it serves `PICTURE` at ``address``.

    ``url``, ``database``: where InfluxDB is.
    """
    folder.mkdir(parents=True, exist_ok=True)
    host, port = address
    settings = folder / "settings.js"
    settings.write_text(_SETTINGS.format(host=host, port=port, folder=json.dumps(str(folder.resolve()))))
    asked = urllib.parse.urlencode({"db": database, "epoch": "ms", "q": _QUERY})
    (folder / "flows.json").write_text(json.dumps(_flow(f"{url}/query?{asked}"), indent=1))
    return ["node", str(_program(installed)), "--settings", str(settings)]


def _program(installed: Path) -> Path:
    return installed.resolve() / "node_modules" / "node-red" / "red.js"


def _flow(query_url: str) -> list[dict[str, object]]:
    def node(kind: str, name: str, then: str | None, **more: object) -> dict[str, object]:
        return {"id": name, "type": kind, "z": "power_meter", "wires": [[then]] if then else [], **more}

    return [
        {"id": "power_meter", "type": "tab", "label": "Power meter"},
        node("http in", "asked", "read", url=PICTURE, method="get"),
        node("http request", "read", "draw", method="GET", ret="obj", url=query_url, senderr=False),
        node("function", "draw", "answer", func=_DRAW, outputs=1),
        node("http response", "answer", None),
    ]
