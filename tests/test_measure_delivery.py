"""What `measure_delivery.py` makes of its measurements."""

import math
from collections import Counter
from dataclasses import replace

import pytest
from measure_delivery import Row, table
from measure_delivery_load import Calls, jain


def test_jains_index_is_one_for_equal_shares_and_one_in_n_for_one_that_has_all() -> None:
    assert jain([3, 3, 3, 3]) == pytest.approx(1.0)
    assert jain([8, 0, 0, 0]) == pytest.approx(0.25)
    assert jain([1, 3]) == pytest.approx(0.8)
    assert math.isnan(jain([0, 0]))


def test_a_quantile_is_an_answers_time_and_processor_time_is_spread_over_the_answers() -> None:
    calls = Calls([0.001 * i for i in range(1, 101)], 50, 0.2, Counter(), Counter())
    assert calls.quantile_ms(0.5) == pytest.approx(51.0)
    assert calls.quantile_ms(0.99) == pytest.approx(100.0)
    assert calls.processor_ms() == pytest.approx(4.0)
    assert math.isnan(Calls().quantile_ms(0.5))
    assert math.isnan(Calls().processor_ms())


def test_the_table_has_a_line_for_each_load_and_a_gap_where_a_server_was_not_asked() -> None:
    ours = Row("qnode", "enc_keys", 1, 10, 1, True, True, 1.234, 5.0, 0.5, 900, 0, None)
    theirs = replace(
        ours, server="easy-kme", p256=False, p50_ms=70.0, p99_ms=90.0, processor_ms=60.0, refused=2
    )
    pairs = replace(ours, pairs=2, connections=2, jain=0.99951)
    assert table([ours, pairs, theirs], ["qnode", "easy-kme"]).splitlines()[2:] == [
        "| `enc_keys` | 1 | 1 | 10 kept | 1.23, 5.00 | 0.50 | 70.0, 90.0 (2 refused) | 60.0 |  |",
        "| `enc_keys` | 1 | 2 | 2 kept | 1.23, 5.00 | 0.50 |  |  | 1.000 |",
    ]
