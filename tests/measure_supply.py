"""Print how many keys one of 1,000 pairs gets, and at what load daemons of 1 and of 10,000 pairs idle.

    python tests/measure_supply.py [--keys 400000] [--pairs 1000] [--many-pairs 10000] [--beside CHECKOUT]

Both sites run as daemons over TCP and TLS, without devices, on stores that were filled before. One pair asks
over HTTPS until it gets no more; its slave fetches nothing. Idle is the processor time of both daemons over
20 s, once a stock is settled. `--beside` measures the code of another checkout as well.
"""

import argparse
import json
import ssl
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from measure_support import Sites, figures_of, processor_s

LEAST_SHARE, MOST_IDLE_RATIO = 0.75, 2.0
SETTLED_S, SETTLING_S, IDLE_S = 12.0, 240.0, 20.0
RETRIES = 8


def measure(n_keys: int, n_pairs: int, many_pairs: int) -> dict[str, float]:
    """Return the keys that one pair got, and the idle load by number of pairs, in percent of a core."""
    result: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        sites = SettledSites(Path(folder) / "sites", n_keys)
        sites.start(n_pairs)
        sites.settle()
        result["got"] = sites.take_all()
        sites.stop()
        for name, number in (("idle_1", 1), ("idle_many", many_pairs)):
            sites.start(number)
            sites.settle()
            result[name] = sites.idle_percent()
            sites.stop()
    return result


class SettledSites(Sites):
    """Both sites; they can be waited for, and drained by the pair of `prepare`."""

    def settle(self) -> None:
        """Wait until the sites are connected and the stock grows no more."""
        before, since = -1, time.monotonic()
        deadline = since + SETTLING_S
        while time.monotonic() < deadline:
            time.sleep(1.0)
            status = self.status()
            if status is None or status["peer"]["connection"]["state"] != "connected":
                since = time.monotonic()
            elif status["keys"]["stock"] != before:
                before, since = status["keys"]["stock"], time.monotonic()
            elif time.monotonic() - since > SETTLED_S:
                return

    def take_all(self) -> int:
        """Ask as master at Alice until nothing more comes; return the number of keys."""
        import httpx

        sae = next(sae for sae in self.endpoints.saes if sae.sae_id == "sae-alice")
        tls = ssl.create_default_context(cafile=self.endpoints.ca)
        tls.load_cert_chain(sae.cert, sae.key)
        url = self.endpoints.sites["alice"].url
        n_got, refused, number = 0, 0, 128
        with httpx.Client(base_url=url, verify=tls, timeout=30.0, trust_env=False) as client:
            while refused < RETRIES:
                answer = client.post(
                    f"/api/v1/keys/{sae.peer_sae_id}/enc_keys", json={"number": number, "size": 256}
                )
                if answer.status_code == 200:
                    n_got += len(answer.json()["keys"])
                    refused = 0
                else:
                    refused += 1
                    time.sleep(1.0)
        return n_got

    def idle_percent(self) -> float:
        """Return the load of both daemons together, in percent of a core."""
        before = processor_s(self.pids)
        time.sleep(IDLE_S)
        return 100.0 * (processor_s(self.pids) - before) / IDLE_S


def main() -> int:
    """Print the figures of this checkout, and of another; 1 when this one is beyond a limit."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--keys", type=int, default=400_000)
    parser.add_argument("--pairs", type=int, default=1000)
    parser.add_argument("--many-pairs", type=int, default=10_000)
    parser.add_argument("--beside", type=Path)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    asked: Any = parser.parse_args()
    if asked.child:
        print(json.dumps(measure(asked.keys, asked.pairs, asked.many_pairs)))
        return 0
    words = ["--keys", str(asked.keys), "--pairs", str(asked.pairs), "--many-pairs", str(asked.many_pairs)]
    here = Path(__file__).parents[1]
    figures = {"here": figures_of(__file__, here, words)}
    if asked.beside:
        figures[str(asked.beside)] = figures_of(__file__, asked.beside.resolve(), words)
    print(f"keys that one of {asked.pairs} pairs got, of {asked.keys} (at least {LEAST_SHARE:.0%})")
    for where, of in figures.items():
        print(f"  {where}: {of['got']:.0f}, {of['got'] / asked.keys:.1%}")
    print(
        f"idle, both daemons, percent of a core: 1 pair, {asked.many_pairs} pairs, ratio "
        f"(at most {MOST_IDLE_RATIO:g})"
    )
    for where, of in figures.items():
        print(f"  {where}: {of['idle_1']:.2f} {of['idle_many']:.2f} {of['idle_many'] / of['idle_1']:.2f}")
    mine = figures["here"]
    good = mine["got"] >= LEAST_SHARE * asked.keys and mine["idle_many"] <= MOST_IDLE_RATIO * mine["idle_1"]
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
