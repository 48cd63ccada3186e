"""Disk space for gigabytes, which is freed after each test."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clients.tus_js import require_tus_js


@pytest.fixture
def room(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory that does not outlive the test, as pytest's own would."""
    with tempfile.TemporaryDirectory(dir=tmp_path_factory.getbasetemp()) as directory:
        yield Path(directory)


@pytest.fixture(scope="session")
def tus_js_installed(tmp_path_factory: pytest.TempPathFactory) -> None:
    """tus-js-client can be run."""
    require_tus_js(tmp_path_factory)
