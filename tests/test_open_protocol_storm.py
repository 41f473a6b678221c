"""A storm of faults between a time tagger of the open protocol and its driver."""

import pytest
from storm_open_protocol import storm


@pytest.mark.parametrize("port", ["pty", "usb"])
async def test_after_a_storm_of_faults_tags_flow_and_each_came_once_or_was_counted_as_lost(port: str) -> None:
    seen, device = await storm(port, rounds=1, seed=3)
    tags, lost = seen.check(device)
    assert tags > 1000
    assert lost >= 777  # those of the full buffer
    assert len(seen.openings) > 1
