"""Power cuts during uploads: a short run of `tests/durability/power_cuts.py`; `make torture` runs it for longer."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.durability.power_cuts import cut_power
from tests.durability.volume import require_mounts
from tests.support.requirements import require_program

CUTS = 3


@pytest.mark.parametrize("durability", ["none", "finish", "chunk"])
@pytest.mark.parametrize("filesystem", ["ext4", "xfs"])
def test_a_power_cut_costs_no_byte_that_was_promised_and_makes_no_wrong_one(
    tmp_path: Path, filesystem: str, durability: str
) -> None:
    require_mounts(tmp_path)
    require_program("mkfs.xfs", "xfsprogs")
    report = cut_power(tmp_path, seed=1, cuts=CUTS, filesystem=filesystem, durability=durability)
    assert report.wrong == []
    assert report.counts["records"] > 0
    assert report.counts["cuts"] == CUTS
