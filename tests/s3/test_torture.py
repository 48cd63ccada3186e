"""A short run of `python -m tests.s3.torture`."""

from __future__ import annotations

import os
import random
from collections.abc import Callable

import pytest

from tests.s3.conftest import shared
from tests.s3.torture import torture

FAULTS = int(os.environ.get("TUSD_TEST_FAULTS", "150"))
SEED = int(os.environ.get("TUSD_TEST_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 32)

pytestmark = [pytest.mark.xdist_group("crash"), pytest.mark.timeout(600)]


def test_nothing_is_lost_where_a_bucket_fails_and_servers_are_killed(
    record_property: Callable[[str, object], None],
) -> None:
    shared("seaweedfs")
    record_property("S3 torture", torture(FAULTS, SEED, limit=300))
