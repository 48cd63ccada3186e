"""Where parts begin and end, also behind those that another server stored."""

from __future__ import annotations

from itertools import pairwise

import pytest

from tusd_py.storage.s3.plan import PartPlan

MIB = 1024 * 1024


@pytest.mark.parametrize(
    "plan",
    [
        PartPlan(8 * MIB),
        PartPlan(8 * MIB, grows=True),
        PartPlan(8 * MIB, given=((5 * MIB, 2), (6 * MIB + 1, 1))),
        PartPlan(8 * MIB, grows=True, given=((50 * MIB, 999), (5 * MIB, 3))),
    ],
)
def test_parts_follow_each_other_and_each_byte_is_in_one(plan: PartPlan) -> None:
    numbers = [*range(1, 10), *range(995, 1010), *range(1995, 2010), 5000, 9999]
    assert plan.start(1) == 0
    for number in numbers:
        start, size = plan.start(number), plan.size(number)
        assert plan.start(number + 1) == start + size
        assert plan.number(start) == plan.number(start + size - 1) == number
    assert all(plan.start(a) < plan.start(b) for a, b in pairwise(numbers))


def test_given_parts_come_first() -> None:
    plan = PartPlan(8 * MIB, given=((5 * MIB, 2), (6 * MIB, 1)))
    sizes = [plan.size(number) // MIB for number in range(1, 6)]
    assert sizes == [5, 5, 6, 8, 8]
    assert [plan.start(number) // MIB for number in range(1, 6)] == [0, 5, 10, 16, 24]
