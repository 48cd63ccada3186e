"""A server that is stopped during a request changes nothing when it continues after another one took the upload over."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from tests.crash.stops import POINTS, Pair, Round, pair

pytestmark = [pytest.mark.xdist_group("crash"), pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def servers() -> Iterator[Pair]:
    with pair() as two:
        yield two


@pytest.mark.parametrize("then", ["finish", "remove"])
@pytest.mark.parametrize(
    ("point", "request_kind"),
    [(point, kind) for point, kinds in POINTS.items() for kind in kinds],
)
def test_a_server_that_was_stopped_changes_nothing(
    servers: Pair, point: str, request_kind: str, then: str
) -> None:
    case = Round(point, request_kind, then, flush=False)
    servers.do(case, random.Random(f"{point} {request_kind} {then}"))
