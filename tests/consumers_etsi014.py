"""Clients of ETSI GS QKD 014 in Python: etsi-qkd-014-client, qkdsec."""

import json
import uuid
from typing import Any

from consumers_support import Consumer, Environment, Place, expect, json_in

from qnode.loopback.prepare import SaeEndpoint

# etsi-qkd-014-client: the library, and its command.

ETSI_CLIENT = Consumer("etsi-qkd-014-client", ("etsi-qkd-014-client==0.9.0",))
_ETSI_CLIENT = """
import json, sys
from etsi_qkd_014_client import QKD014Client
host, ca, cert, key, call, arguments = sys.argv[1:]
client = QKD014Client(host, cert, key, ca)
words, options = json.loads(arguments)
status, data = getattr(client, call)(*words, **options)
shown = dict(vars(data))
if "keys" in shown:
    shown["keys"] = [vars(one) for one in shown["keys"]]
print(json.dumps([status, shown]))
"""


def _host(place: Place, sae: SaeEndpoint) -> str:
    return place.site(sae).url.removeprefix("https://")


def _call(
    place: Place, environment: Environment, sae: SaeEndpoint, call: str, *words: Any, **options: Any
) -> tuple[int, dict[str, Any]]:
    files = (place.endpoints.ca, sae.cert, sae.key)
    given = json.dumps([[sae.peer_sae_id, *words], options])
    printed = environment.run("python", "-c", _ETSI_CLIENT, _host(place, sae), *files, call, given)
    status, shown = json.loads(printed.strip().splitlines()[-1])
    return status, shown


@ETSI_CLIENT.step("get_status() at both key managers names the pair")
def _(place: Place, environment: Environment) -> str:
    for sae, peer in ((place.alice, place.bob), (place.bob, place.alice)):
        status, shown = _call(place, environment, sae, "get_status")
        expect(status == 200 and shown["master_sae_id"] == sae.sae_id, shown)
        expect(shown["slave_sae_id"] == peer.sae_id and shown["target_kme_id"] == peer.kme, shown)
        expect(shown["stored_key_count"] > 0 and shown["key_size"] == 256, shown)
    return f"{shown['stored_key_count']} keys of 256 bits at {sae.kme}"


@ETSI_CLIENT.step("get_key() at one and get_key_with_key_IDs() at the other give the same keys, once")
def _(place: Place, environment: Environment) -> str:
    ways: tuple[dict[str, Any], ...] = ({}, {"number": 4, "size": 512}, {"extension_optional": [{"a_b": 1}]})
    for sae, peer in ((place.alice, place.bob), (place.bob, place.alice)):
        for options in ways:  # without options it asks by GET, else by POST
            status, given = _call(place, environment, sae, "get_key", **options)
            expect(status == 200 and len(given["keys"]) == options.get("number", 1), status)
            key_ids = [one["key_id"] for one in given["keys"]]
            status, fetched = _call(place, environment, peer, "get_key_with_key_IDs", key_ids)
            expect(status == 200 and fetched["keys"] == given["keys"], "the keys differ")
            status, again = _call(place, environment, peer, "get_key_with_key_IDs", key_ids)
            expect(status == 400, status)
    return f"by GET and POST, in both directions; a second fetch is 400: {again['message']}"


@ETSI_CLIENT.step("refusals reach it with status and message")
def _(place: Place, environment: Environment) -> str:
    status, error = _call(place, environment, place.alice, "get_key", size=100)
    expect(status == 400 and error["message"] == "size shall be a multiple of 8", error)
    status, given = _call(place, environment, place.alice, "get_key")
    key_id = given["keys"][0]["key_id"]
    status, error = _call(place, environment, place.alice, "get_key_with_key_IDs", [key_id])
    expect(status == 401 and error["message"], error)
    return f"400, and 401 for the wrong side: {error['message']}"


@ETSI_CLIENT.step("its command qkd014-client gets the status")
def _(place: Place, environment: Environment) -> str:
    sae = place.alice
    files = ("-H", _host(place, sae), "-c", sae.cert, "-k", sae.key, "-r", place.endpoints.ca)
    printed = environment.run("qkd014-client", *files, "get_status", sae.peer_sae_id)
    expect("Response code : 200" in printed and f"source_KME_ID : {sae.kme}" in printed, printed)
    return "Response code : 200"


# qkdsec: its client, and its doctor.

QKDSEC = Consumer("qkdsec", ("qkdsec[doctor]==0.3.0",))
# What qkdsec wants otherwise than clauses 5.4 and 6.3 of the standard have it, which the node follows.
_DOCTOR_WANTS = {
    "dec_keys_roundtrip": ("fail", "HTTP 401"),  # it fetches as the master, who was not named as slave
    "error_contract_404": ("warn", "HTTP 400"),  # the standard has no 404: a key_ID not found is 400
}


def _qkdsec(place: Place, environment: Environment, sae: SaeEndpoint, *words: str, code: int = 0) -> str:
    files = ("--cert", sae.cert, "--key", sae.key, "--ca-cert", place.endpoints.ca)
    return environment.run("qkdsec", *words, *files, expect=code)


@QKDSEC.step("keys get at one site and keys retrieve at the other give the same key, once")
def _(place: Place, environment: Environment) -> str:
    for method in ("GET", "POST"):
        ask = ("keys", "get", place.site(place.alice).url, place.bob.sae_id, "--method", method, "--json")
        given = json_in(_qkdsec(place, environment, place.alice, *ask))
        fetch = (
            "keys",
            "retrieve",
            place.site(place.bob).url,
            place.alice.sae_id,
            given[0]["key_id"],
            "--json",
        )
        expect(json_in(_qkdsec(place, environment, place.bob, *fetch)) == given, "the keys differ")
        again = _qkdsec(place, environment, place.bob, *fetch, code=1)
        expect("one or more keys specified are not found on KME" in again, again)
    return "by GET and POST; a second fetch is refused"


@QKDSEC.step("doctor calls the node NON-CONFORMANT for two things that the standard has otherwise")
def _(place: Place, environment: Environment) -> str:
    words = ("doctor", place.site(place.alice).url, "-s", place.bob.sae_id, "--format", "json")
    report = json_in(_qkdsec(place, environment, place.alice, *words, code=1))
    other = {one["name"]: one for one in report["results"] if one["status"] != "pass"}
    expect(other.keys() == _DOCTOR_WANTS.keys() and len(report["results"]) == 10, other)
    for name, (status, seen) in _DOCTOR_WANTS.items():
        expect(other[name]["status"] == status and seen in other[name]["summary"], other[name])
    verdict = _qkdsec(place, environment, place.alice, *words[:-2], code=1)
    expect("NON-CONFORMANT" in verdict, verdict)
    return f"{report['counts']['pass']} of 10 probes pass; it fetches as the master, and wants 404"


@QKDSEC.step("a key_ID that nobody has is 400, as the standard has it")
def _(place: Place, environment: Environment) -> str:
    fetch = ("keys", "retrieve", place.site(place.bob).url, place.alice.sae_id, str(uuid.uuid4()))
    printed = _qkdsec(place, environment, place.bob, *fetch, code=1)
    expect("400" in printed, printed)
    return printed.strip().splitlines()[-1]
