"""Servers with an operators' page, and an operator who is signed in."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.admin.operator import Operator, address_of, new_code
from tests.auth.people import SECRET, access, bearer
from tests.support.server import ServerProcess

ADMIN = ("--admin", "127.0.0.1:0")


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """One server whose operators may see metadata, for all tests of a module. Do not stop it."""
    directory = tmp_path_factory.mktemp("watched") / "uploads"
    env = {"TUSD_DUPLICATES": "on"}
    flags = (*ADMIN, "--admin-show-metadata", "--hooks-delivery", "workers")
    with ServerProcess(directory, *flags, env=env) as process:
        yield process


@pytest.fixture(scope="module")
def operator(watched: ServerProcess) -> Operator:
    """Somebody with a session from a link."""
    return Operator(address_of(watched)).sign_in(new_code(watched))


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """One server with `--auth jwt` whose operators may see no metadata. Do not stop it."""
    directory = tmp_path_factory.mktemp("guarded") / "uploads"
    flags = (*ADMIN, "--auth", "jwt", "--admin-user-header", "X-Operator")
    # Its peers on this machine are the authenticating proxy, or are not: see `test_access.py`.
    proxy = ("--behind-proxy", "127.0.0.2", "--admin-hosts", "ops.example.org")
    more = (*proxy, "--quota-bytes", "1000TB")
    with ServerProcess(directory, *flags, *more, env={"TUSD_JWT_SECRET": SECRET}) as process:
        yield process


@pytest.fixture(scope="module")
def root(guarded: ServerProcess) -> Operator:
    """Somebody with a token for everything."""
    return Operator(address_of(guarded), bearer(access("root", "uploads:admin")))
