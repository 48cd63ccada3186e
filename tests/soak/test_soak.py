"""A short run of `python -m tests.soak`."""

from __future__ import annotations

import os
import random
from collections.abc import Callable

import pytest

from tests.durability.volume import require_mounts
from tests.soak.driver import Options, soak

FAULTS = int(os.environ.get("TUSD_TEST_FAULTS", "200"))
SEED = int(os.environ.get("TUSD_TEST_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 32)

pytestmark = [pytest.mark.xdist_group("crash"), pytest.mark.timeout(600)]


def test_nothing_is_lost_whatever_fails(
    tmp_path_factory: pytest.TempPathFactory, record_property: Callable[[str, object], None]
) -> None:
    require_mounts(tmp_path_factory.mktemp("probe"))
    run = soak(Options(FAULTS, minutes=0.5, seed=SEED, clients=12))
    record_property("soak", run.counts())
    # All of them, unless the machine has better things to do.
    assert run.total() > FAULTS / 10
