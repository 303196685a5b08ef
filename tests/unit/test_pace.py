"""The pace of an operation tells what a chunk costs from what its units cost."""

import pytest

from ppworker.pipeline.control import pace
from ppworker.pipeline.control.pace import Pace


def settle(each_s, fixed_s, *, chunks=30, lease_s=30.0):
    """Units of a chunk once the pace has learned what units and chunks cost."""
    found = Pace(1, lease_s)
    for _ in range(chunks):
        found.learn(found.units, fixed_s + each_s * found.units)
    return found.units


@pytest.mark.parametrize("fixed_s", [0.0, 0.05, 0.3])
def test_chunks_last_as_long_as_they_should_whatever_they_cost_before_the_first_unit(fixed_s):
    units = settle(0.001, fixed_s)
    assert fixed_s + 0.001 * units == pytest.approx(max(pace.CHUNK_S, 2 * fixed_s), rel=0.1)


def test_a_chunk_that_costs_much_by_itself_does_not_shrink_to_one_unit():
    # Time divided by units alone would end at one unit for each 0.6 seconds.
    assert settle(0.001, 0.6) >= 500


def test_no_chunk_fills_the_lease():
    units = settle(0.0001, 1.0, lease_s=6.0)
    assert 1.0 + 0.0001 * units < 6.0 / 3


def test_it_grows_step_by_step_and_not_beyond_the_most():
    found = Pace(1, 30.0)
    first = found.units
    found.learn(found.units, 1e-6)
    assert first < found.units <= 4 * first
    assert settle(1e-7, 0.0) == pace.MOST_UNITS


def test_units_that_become_dearer_make_smaller_chunks_at_once():
    found = Pace(1, 30.0)
    for _ in range(10):
        found.learn(found.units, 0.001 * found.units)
    before = found.units
    found.learn(found.units, 0.1 * found.units)
    assert found.units < before / 10


def test_each_try_without_progress_begins_smaller():
    assert [Pace(attempts, 30.0).units for attempts in (1, 2, 3, 4, 5)] == [128, 32, 8, 2, 1]
