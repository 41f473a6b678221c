"""Key delivery of real daemons while the other site hangs: a reserve, quick answers, and no key lost."""

import signal
import time
from collections import Counter
from pathlib import Path

import pytest
from daemons_support import ROLES, encryptors, eventually, keys_in, two_sites

pytestmark = [pytest.mark.link, pytest.mark.timeout(600)]


def test_while_the_other_site_hangs_the_reserve_is_served_and_then_all_are_told_at_once_and_no_key_is_lost(
    tmp_path: Path,
) -> None:
    with two_sites(tmp_path) as sites:
        sites.start(*ROLES)
        sites.wait_until_serving(*ROLES)
        alice, bob = encryptors(sites.endpoints)
        first = alice.assign(1)
        assert bob.fetch_soon(list(first)) == first

        def has_reserve() -> bool:
            status = sites.status("alice")
            return status is not None and status.keys.stock > 4

        eventually(has_reserve, "the pair that asked has a reserve")
        sites.processes["bob"].send_signal(signal.SIGSTOP)
        answers = Counter[int]()
        got: dict[str, bytes] = {}
        slow = 0
        hung_until = time.monotonic() + 6.0  # less than the silence after which the session ends
        try:
            while time.monotonic() < hung_until:
                asked_at = time.monotonic()
                response = alice.post("enc_keys", {"number": 2, "size": 256})
                slow += time.monotonic() - asked_at > 1.9  # the time-out of the assignment's announcement
                answers[response.status_code] += 1
                if response.status_code == 200:
                    got |= keys_in(response)
                time.sleep(0.02)
        finally:
            sites.processes["bob"].send_signal(signal.SIGCONT)
        assert slow <= 1
        assert answers[200] >= 2
        assert answers.keys() == {200, 503}
        assert len(got) == 2 * answers[200]
        assert bob.fetch_soon(list(got)) == got
        again = alice.assign(2)
        assert bob.fetch_soon(list(again)) == again

        def settled() -> bool:
            status = sites.status("alice")
            return status is not None and status.keys.assigned == 0  # besides stock

        eventually(settled, "what was not acknowledged is free again")
        for role in ROLES:
            status = sites.status(role)
            assert status is not None
            assert status.keys.void_total == 0
