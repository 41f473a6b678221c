"""What holds for every test: made-up examples are the same in each run, and none fails for being slow."""

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile(
    "patient", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("patient")

# These files take longest, and begin first: else one processor would be left with them at the end.
_LONGEST = (
    "test_protocol_1",
    "test_liar",
    "test_link_daemons",
    "test_kernels",
    "test_world",
    "test_supply_daemons",
    "test_testbed_meter",
    "test_testbed_collector",
    "test_hostile_daemons",
    "test_agent_daemons",
    "test_cli_driver",
    "test_offline",
    "test_tags_synchroniser",
    "test_drivers_faults",
    "test_link_monitors",
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
