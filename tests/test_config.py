"""Configuration: a wrong file gets one line that says what, where, and how to mend it."""

import copy
import math
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import click
import msgspec
import pytest
import tomli_w
from click.testing import CliRunner
from qnode_drivers.replay import ReplayTdc
from test_docs_in_step import described_tables

from qnode.cli.main import qnode
from qnode.config import SiteConfig, check_link_parameters, load
from qnode.config.description import Limits, Rule, is_table, keys_of
from qnode.config.reading import reading_faults
from qnode.errors import ConfigError
from qnode.loopback.prepare import LoopbackConfig, Staging, prepare
from qnode.simulate.parameters import (
    DetectorParameters,
    JitterParameters,
    ScheduledChange,
    Settings,
    SimulationParameters,
)


@pytest.fixture
def site_file(tmp_path: Path) -> Path:
    return prepare(tmp_path / "data", LoopbackConfig(), Staging()).site_files["alice"]


def changed(path: Path, change: Any) -> Path:
    import tomllib

    tables = tomllib.loads(path.read_text())
    change(tables)
    path.write_text(tomli_w.dumps(tables))
    return path


def refusal(path: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        load(path, SiteConfig)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


def test_the_site_files_that_loopback_writes_are_accepted(site_file: Path) -> None:
    config = load(site_file, SiteConfig)
    assert config.node.role == "alice"
    assert config.store.path.is_absolute()


def test_unknown_key_is_refused_with_its_table_and_a_near_match(site_file: Path) -> None:
    changed(site_file, lambda tables: tables["link"]["source"].update(qubit_rate=1))
    message = refusal(site_file)
    assert "[link.source]" in message
    assert "did you mean qubit_rate_hz?" in message


def test_unknown_table_is_refused_with_a_near_match(site_file: Path) -> None:
    changed(site_file, lambda tables: tables.update(stor={"path": "x"}))
    assert "unknown table stor, did you mean store?" in refusal(site_file)


@pytest.mark.parametrize(
    ("toml", "told"),
    [
        (
            '[link.reconciliation]\nmethod = "casade"',
            "[link.reconciliation] method: expected auto or cascade or ldpc, did you mean cascade? "
            "(got 'casade')",
        ),
        (
            '[link.block]\nsifted_bits = "many"',
            "[link.block] sifted_bits: expected auto or a whole number (got 'many')",
        ),
        ("[link.block]\nsifted_bits = 5", "link.block.sifted_bits: expected 1000 to 5e+07, got 5"),
        ("[link.source]\np_z = 3.0", "link.source.p_z: expected a fraction between 0 and 1, got 3.0"),
        ("[simulation]\nvisibility = 3.0", "[simulation] visibility: expected a value from 0 to 1, got 3.0"),
        (
            '[[simulation.schedule]]\nat_s = 3.0\neve_burst_arm = "y"',
            "[simulation.schedule[0]] eve_burst_arm: expected z or x (got 'y')",
        ),
    ],
)
def test_a_loopback_file_is_refused_by_its_own_name_with_what_could_stand_there(
    tmp_path: Path, toml: str, told: str
) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(toml)
    for command in (["loopback"], ["record", "--out", str(tmp_path / "new"), "--duration", "1"]):
        name, *options = command
        found = qnode.get_command(click.Context(qnode), name)
        assert found is not None
        done = CliRunner().invoke(found, [*options, "--config", str(path)], standalone_mode=False)
        assert (done.return_value, done.stderr) == (64, f"qnode: {path}: {told}\n")


def test_wrong_type_is_refused_with_table_key_and_value(site_file: Path) -> None:
    changed(site_file, lambda tables: tables["link"]["receiver"].update(gate_width_ps="wide"))
    message = refusal(site_file)
    assert "[link.receiver] gate_width_ps" in message
    assert "'wide'" in message


def test_missing_key_is_refused_by_name(site_file: Path) -> None:
    changed(site_file, lambda tables: tables["store"].pop("anchor"))
    assert "anchor" in refusal(site_file)


def test_missing_file_and_broken_toml_are_refused(tmp_path: Path) -> None:
    assert "cannot be read" in refusal(tmp_path / "absent.toml")
    broken = tmp_path / "broken.toml"
    broken.write_text("[node\n")
    assert "not TOML" in refusal(broken)


@pytest.mark.parametrize(
    ("table", "key", "value", "named"),
    [
        ("source", "mu", [0.2, 0.5], "link.source.mu"),
        ("source", "mu_uncertainty", [0.02, -0.01], "link.source.mu_uncertainty"),
        ("source", "mu_uncertainty", [0.5, 0.5], "link.source.mu_uncertainty"),
        ("source", "p", [0.7, 0.7], "link.source.p"),
        ("source", "p", [0.7, math.nan], "link.source.p"),
        ("block", "qber_z_limit", math.nan, "link.block.qber_z_limit"),
        ("source", "p_z", 1.0, "link.source.p_z"),
        ("source", "bin_spacing_ps", 100.0, "link.source.bin_spacing_ps"),
        ("receiver", "gate_width_ps", 1000.0, "link.receiver.gate_width_ps"),
        ("block", "sifted_bits", 3, "link.block.sifted_bits"),
        ("estimation", "eps_sec", 0.0, "link.estimation.eps_sec"),
        ("estimation", "eps_sec", 5e-324, "link.estimation.eps_sec"),
        ("receiver", "dead_time_s", -1e-6, "link.receiver.dead_time_s"),
        ("receiver", "order_window_ps", -1, "link.receiver.order_window_ps: expected 0 to 1e+10, got -1"),
        ("receiver", "order_window_ps", 10_000_000_001, "link.receiver.order_window_ps"),
        ("plausibility", "balance_tolerance", 0.6, "link.plausibility.balance_tolerance"),
        ("plausibility", "arm_ratio", [2.0, 1.0], "link.plausibility.arm_ratio"),
        ("plausibility", "out_of_gate", [0.0, 1.5], "link.plausibility.out_of_gate"),
        ("plausibility", "false_alarms_per_year", 0.0, "link.plausibility.false_alarms_per_year"),
        ("keys", "reserve_pads_per_direction", 2, "link.keys.reserve_pads_per_direction"),
    ],
)
def test_impossible_link_parameters_are_refused_by_name(
    site_file: Path, table: str, key: str, value: Any, named: str
) -> None:
    changed(site_file, lambda tables: tables["link"][table].update({key: value}))
    assert named in refusal(site_file)


def test_relative_paths_are_taken_from_the_files_folder(site_file: Path) -> None:
    changed(site_file, lambda tables: tables["store"].update(anchor="here/anchor"))
    assert load(site_file, SiteConfig).store.anchor == site_file.parent / "here" / "anchor"


def test_the_bound_that_does_not_hold_is_refused_with_what_stands_in_its_place(site_file: Path) -> None:
    changed(site_file, lambda tables: tables["link"]["estimation"].update(asymmetry_bound="reference"))
    told = refusal(site_file)
    assert "[link.estimation] asymmetry_bound" in told
    assert '"shares"' in told
    assert '"joint"' in told


def test_a_link_of_real_hardware_repeats_no_tags(site_file: Path) -> None:
    changed(site_file, lambda tables: tables["link"]["plausibility"].update(repeats=2.0))
    load(site_file, SiteConfig)
    changed(site_file, lambda tables: tables["node"].update(allow_simulated=False))
    assert "link.plausibility.repeats" in refusal(site_file)


@pytest.mark.parametrize("role", ["alice", "bob"])
def test_the_shipped_site_files_are_accepted_and_agree(role: str) -> None:
    folder = Path(__file__).parent.parent / "config"
    config = load(folder / f"{role}.toml", SiteConfig)
    assert config.node.role == role
    assert config.link == load(folder / "bob.toml", SiteConfig).link


@pytest.mark.parametrize("name", ["turin", "turin-best", "fast"])
def test_the_shipped_loopback_files_are_accepted(name: str) -> None:
    path = Path(__file__).parent.parent / "config" / f"{name}.toml"
    config = load(path, LoopbackConfig)
    check_link_parameters(config.link)


def limited_keys(table: type[msgspec.Struct], path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """Yield the place of every key of the site's tables whose number has limits."""
    for key in keys_of(table):
        here = (*path, key.name)
        if isinstance(key.described.limits, Limits):
            yield here
        elif get_origin(key.kind) is dict and is_table(get_args(key.kind)[1]):
            yield from limited_keys(get_args(key.kind)[1], (*here, "transmitter"))
        else:
            for kind in (key.kind, *get_args(key.kind)):
                if is_table(kind):
                    yield from limited_keys(kind, here)


MONITORED = """
[monitors.readings.transmitter]
monitor = "output_power"
device = "transmitter"
reading = "power_w"
least = 0.9e-6
most = 1.1e-6

[monitors.photocurrents.transmitter]
device = "transmitter"
channel = 0
reading = "z_detector_photocurrent_a"
dark_a = 1e-9
charge_per_click_c = 1e-12

[randomness]
device = "transmitter"
min_entropy_bits = 7.0

[telemetry]
url = "http://127.0.0.1:8086"
database = "qkd"
spool = "telemetry"
"""


@pytest.mark.parametrize("number", [-1e30, 1e30, math.nan])
def test_no_number_of_a_site_file_may_lie_beyond_its_limits(site_file: Path, number: float) -> None:
    tables = tomllib.loads(site_file.read_text() + MONITORED)
    places = list(limited_keys(SiteConfig, ()))
    assert ("devices", "transmitter", "silence_limit_s") in places
    for *path, key in places:
        raw = copy.deepcopy(tables)
        table: Any = raw
        for name in path:
            table = table.setdefault(name, {})
            table = table[0] if isinstance(table, list) else table  # `[[etsi014.sae]]`
        table[key] = int(number) if isinstance(table.get(key), int) and math.isfinite(number) else number
        faults = reading_faults(raw, SiteConfig)
        assert any(key in fault for fault in faults), (path, key, faults)


@pytest.mark.parametrize("number", [-1e30, 1e30, math.nan])
@pytest.mark.parametrize(
    "table", [SimulationParameters, DetectorParameters, JitterParameters, Settings, ReplayTdc.Config]
)
def test_no_number_of_the_simulation_or_a_driver_may_lie_beyond_its_limits(
    table: type[msgspec.Struct], number: float
) -> None:
    required = {"recording": Path()} if table is ReplayTdc.Config else {}
    for key in keys_of(table):
        value = (number, number) if key.name == "mu_sent" else number
        if isinstance(key.described.limits, Limits | Rule):
            with pytest.raises(ValueError, match=key.name):
                table(**required, **{key.field.name: value})


def test_every_number_of_a_configuration_file_has_limits() -> None:
    for table in described_tables() - {ScheduledChange}:
        for key in keys_of(table):
            if {int, float} & {key.kind, *get_args(key.kind)} and get_origin(key.kind) is not Literal:
                assert key.described.limits, (table.__name__, key.name)
