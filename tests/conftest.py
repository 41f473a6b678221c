"""What holds for every test: made-up examples are the same in each run, and none fails for being slow."""

import gc
import os
import signal
from collections.abc import Iterator

import pytest
import structlog
from hypothesis import HealthCheck, settings
from postgresql_support import PostgresqlSite, Server, missing, running_server

from qnode.node.process import GC_THRESHOLD

settings.register_profile(
    "patient", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("patient")

# What is imported and collected is there to the end: the garbage collector need not go through it.
gc.disable()

# A shell starts what runs in the background deaf to Ctrl-C, and so would be every process that a test starts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# These files take longest, and begin first: else one processor would be left with them at the end.
_LONGEST = (
    "test_protocol_1",
    "test_liar",
    "test_link_daemons",
    "test_loopback_daemons",
    "test_kernels",
    "test_world",
    "test_supply_daemons",
    "test_testbed_meter",
    "test_testbed_collector",
    "test_hostile_daemons",
    "test_agent_daemons",
    "test_cli_driver",
    "test_offline",
    "test_distill_three_state_mpmath",
    "test_plan",
    "test_driver_s_fifteen_tdc1",
    "test_tags_synchroniser",
    "test_drivers_faults",
    "test_link_monitors",
    "test_link_recording",
    "test_bench_validity",
    "test_open_protocol_storm",
    "test_restore_daemons",
    "test_saes_daemons",
    "test_links_daemons",
    "test_reload_daemons",
    "test_cuts",
    "test_node_liar",
    "test_telemetry",
    "test_loopback_emulated",  # not while kernels are compiled: its devices do not wait
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the files that take longest first."""
    place = {name: number for number, name in enumerate(_LONGEST)}
    items.sort(key=lambda item: place.get(item.path.stem, len(place)))


def pytest_collection_finish() -> None:
    """Have garbage collected from here on, of what tests make alone."""
    gc.freeze()
    gc.set_threshold(GC_THRESHOLD)
    gc.enable()


@pytest.fixture(autouse=True)
def _log_as_before() -> Iterator[None]:
    """Give the next test the log that this one found."""
    before = structlog.get_config()
    yield
    structlog.configure(**before)


@pytest.fixture(scope="session")
def postgresql() -> Iterator[Server]:
    """A server of PostgreSQL for the tests of a process."""
    if because := missing():
        pytest.skip(because)
    with running_server() as server:
        yield server


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """With QNODE_POSTGRESQL=1, run the tests that both stores share on PostgreSQL instead of SQLite."""
    of_sqlite = metafunc.definition.get_closest_marker("sqlite") is not None
    if "each_store" in metafunc.fixturenames and os.environ.get("QNODE_POSTGRESQL") and not of_sqlite:
        metafunc.parametrize("each_store", ["postgresql"], indirect=True)


@pytest.fixture
def each_store(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the sites of a test module have their stores in SQLite, or in PostgreSQL."""
    if getattr(request, "param", "sqlite") == "postgresql":
        server = request.getfixturevalue("postgresql")
        monkeypatch.setattr(PostgresqlSite, "server", server, raising=False)
        monkeypatch.setattr(request.module, "Site", PostgresqlSite)
