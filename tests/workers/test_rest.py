"""Regular sweeps take little time from clients that upload meanwhile."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from tusd_py.service.regular_sweeps import RegularSweeps
from tusd_py.settings.model import Settings
from tusd_py.storage.base import UploadInfo
from tusd_py.storage.file.store import FileStore
from tusd_py.web.app import TusApp

UPLOADS = 600
BATCHES = 2


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds for which somebody rested, and did not have to in this test."""
    found: list[float] = []

    async def sleep(seconds: float) -> None:
        found.append(seconds)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    return found


async def test_a_servers_own_sweep_rests_while_others_are_served(
    tmp_path: Path, pauses: list[float]
) -> None:
    store = FileStore(tmp_path)
    store.open()
    for number in range(UPLOADS):
        await store.create(UploadInfo(f"{number:032x}", 1, created_at=time.time()))
    store.close()
    app = TusApp(Settings(upload_dir=tmp_path, duplicates="off"))
    app.open()
    sweeps = RegularSweeps(app.instance, needs_workers=True)
    try:
        assert await sweeps.sweep("all") is not None
        assert not any(pauses)
        app.counters.uploads_active = 1
        began = time.monotonic()
        report = await sweeps.sweep("all")
        took = time.monotonic() - began
        assert report is not None
        assert report.seen == UPLOADS
        rests = [seconds for seconds in pauses if seconds]
        # What it would remove is counted first.
        assert len(rests) == 2 * BATCHES
        # Three times as long as it worked, which is nearly all that it did.
        assert took < sum(rests) <= 3 * took
        pauses.clear()
        # An operator's does not.
        assert (await app.instance.maintenance.sweep("all")).seen == UPLOADS
        assert not any(pauses)
    finally:
        await app.instance.store.stop()
