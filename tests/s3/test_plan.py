"""Where parts begin and end, also behind those that another server stored."""

from __future__ import annotations

from itertools import pairwise

import pytest

from tusd_py.storage.s3.object_store import MAX_PART_BYTES
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


@pytest.mark.parametrize("part_bytes", [5 * MIB, 8 * MIB])
@pytest.mark.parametrize("equal", [False, True])
def test_an_unknown_length_can_be_fifty_gigabytes_and_parts_begin_small(
    part_bytes: int, equal: bool
) -> None:
    plan = PartPlan.of(None, part_bytes=part_bytes, max_parts=10_000, equal=equal)
    assert plan.size(1) == part_bytes
    assert plan.number(50 * 10**9 - 1) <= 10_000
    assert plan.most_bytes(10_000) >= 50 * 10**9


@pytest.mark.parametrize("max_parts", [100, 200, 1_000, 9_999])
def test_parts_of_an_unknown_length_grow_by_what_the_store_takes(max_parts: int) -> None:
    plan = PartPlan.of(None, part_bytes=8 * MIB, max_parts=max_parts, equal=False)
    step = max_parts // 10
    sizes = [plan.size(1 + step * number) // MIB for number in range(5)]
    assert sizes == [8, 32, 128, 512, 512]
    assert plan.size(step) == 8 * MIB
    most = plan.most_bytes(max_parts)
    assert plan.number(most - 1) == max_parts
    assert plan.number(most) == max_parts + 1
    if max_parts >= 200:
        assert most >= 50 * 10**9


@pytest.mark.parametrize("max_parts", [100, 1_000, 10_000])
@pytest.mark.parametrize("length", [1, 8 * MIB, 50 * 10**9, 5 * 1024 * 1024 * MIB])
def test_a_known_length_has_at_most_as_many_parts_as_the_store_takes(
    length: int, max_parts: int
) -> None:
    length = min(length, max_parts * MAX_PART_BYTES)
    plan = PartPlan.of(length, part_bytes=8 * MIB, max_parts=max_parts, equal=False)
    assert plan.number(length - 1) <= max_parts
    assert plan.size(1) <= MAX_PART_BYTES


def test_the_largest_length_has_just_as_many_parts() -> None:
    length = 10_000 * MAX_PART_BYTES
    plan = PartPlan.of(length, part_bytes=8 * MIB, max_parts=10_000, equal=True)
    assert plan.number(length - 1) == 10_000
