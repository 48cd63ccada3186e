"""Servers with `--auth jwt`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.auth.people import GRACE, SECRET, TTL
from tests.support.server import ServerProcess
from tests.support.tus import Tus

FLAGS = ("--auth", "jwt", f"--upload-token-ttl={TTL}s", f"--upload-token-grace={GRACE}s")


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """One server for all tests of a module, with the secret of `people`."""
    directory = tmp_path_factory.mktemp("guarded") / "uploads"
    with ServerProcess(directory, *FLAGS, env={"TUSD_JWT_SECRET": SECRET}) as process:
        yield process


@pytest.fixture
def tus(guarded: ServerProcess) -> Tus:
    """A client of it, without any token of its own."""
    return Tus(guarded)
