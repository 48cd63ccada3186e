"""kill -9 at hundreds of random moments, while many clients upload: nothing is lost.

Not for power cuts: the kernel lives on, so what was written counts as kept without a sync.
"""

from __future__ import annotations

import json
import os
import random
import socket
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISREG
from time import monotonic

import pytest

from tests.clients.content import sha256_of_download, sha256_of_file
from tests.crash.fleet import POISON, Fleet
from tests.support.server import ServerProcess
from tests.support.tus import Tus
from tests.support.waiting import wait_until

KILLS = int(os.environ.get("TUSD_TEST_KILLS", "200"))
SEED = int(os.environ.get("TUSD_TEST_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 32)
CLIENTS = 8
NOTES = ("state.lock", "removal-settings")
"""Files of a server that are larger, as they contain a path or several settings."""
SMALL = 64
"""Bytes. Locks, notes and tombstones are smaller, records and data are larger."""

LIFE = 0.35
"""Seconds that a server lives at most, once it listens."""

pytestmark = [pytest.mark.xdist_group("crash"), pytest.mark.timeout(1200)]


def quiet_port() -> int:
    """A free port below those that the kernel gives to outgoing connections.

    Between two servers the port is nobody's for a moment, and must still be free afterwards.
    """
    while True:
        port = random.randrange(20_000, 32_000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


@dataclass
class Kills:
    """Counts of kills; `starting`: before the server listened."""

    total: int = 0
    starting: int = 0


def test_kill_9_at_random_moments(
    room: Path, record_property: Callable[[str, object], None]
) -> None:
    print(f"seed {SEED}")
    began = monotonic()
    with (
        ServerProcess(room / "uploads", port=quiet_port()) as server,
        Fleet(server, SEED, CLIENTS) as fleet,
    ):
        kills = kill_again_and_again(server, fleet)
        fleet.finish(timeout=180)
        assert not fleet.failures, "\n".join([f"seed {SEED}", *fleet.failures])
        assert server.terminate() == 0
        # Whatever was left lying about is for the next start to remove.
        server.restart()
        assert_all_is_well(server, fleet)
        tally = fleet.tally
    record_property(
        "kill -9",
        f"{kills.total} kills ({kills.starting} during a start) with seed {SEED}, "
        f"{tally.uploads} uploads, {tally.bytes_verified / 1e6:.0f} MB verified, "
        f"{tally.patches} PATCHes, {tally.broken} broken requests, "
        f"{tally.corrupt} corrupt chunks, {monotonic() - began:.0f} s, {tally.kinds}",
    )


def kill_again_and_again(server: ServerProcess, fleet: Fleet) -> Kills:
    """Kills and restarts until it was KILLS times, or a client has failed."""
    dice = random.Random(SEED)
    kills = Kills()
    fleet.server_is_up()
    while kills.total < KILLS and not fleet.failed.wait(dice.uniform(0, LIFE)):
        fleet.server_is_down()
        server.kill9()
        kills.total += 1
        if dice.random() < 0.1:
            # A start that is cut short, with all that it was mending.
            server.launch()
            fleet.failed.wait(dice.uniform(0, 0.6))
            server.kill9()
            kills.total += 1
            kills.starting += 1
        server.restart()
        fleet.server_is_up()
    return kills


def assert_all_is_well(server: ServerProcess, fleet: Fleet) -> None:
    """Every upload is there with its bytes, and nothing is there that is no upload's."""
    tus = Tus(server)
    with suppress(AssertionError):
        wait_until(lambda: not remains(server, fleet), "the sweep of all remains", timeout=60)
    assert remains(server, fleet) == set()
    for upload in fleet.kept:
        assert sha256_of_file(server.data_file(upload.id)) == upload.sha256
        assert sha256_of_download(server, upload.path) == upload.sha256
    for deleted in fleet.deleted:
        assert tus.head(f"{server.base_path}{deleted}").status == 410
    unseen = ids_on_disk(server) - {upload.id for upload in fleet.kept}
    assert len(unseen) <= fleet.tally.created_unseen
    for upload_id in unseen:
        data = server.data_file(upload_id)
        if data.exists():
            head = tus.head(f"{server.base_path}{upload_id}")
            assert head.status == 200
            assert head["Upload-Offset"] == str(data.stat().st_size)
    for file in files_below(server.upload_dir):
        # The sweep goes on.
        with suppress(FileNotFoundError):
            if file.is_file():
                assert POISON not in file.read_bytes(), f"unverified bytes in {file}"


def ids_on_disk(server: ServerProcess) -> set[str]:
    """The ids of which there is any file."""
    names = {entry.name for entry in server.upload_dir.iterdir()} - {".tusd-py"}
    return {name.removesuffix(".info") for name in names}


def remains(server: ServerProcess, fleet: Fleet) -> set[str]:
    """The files that belong to no upload, or to one that was deleted."""
    found = set()
    for upload_id in ids_on_disk(server):
        record = record_of(server, upload_id)
        if upload_id in fleet.deleted or record is None:
            found.add(upload_id)
        elif not server.data_file(upload_id).exists() and not record["IsFinal"]:
            # A final whose parts never became complete has no bytes of its own; all others have.
            found.add(f"{upload_id}.info")
    return found | {str(file) for file in left_in_state(server.upload_dir / ".tusd-py")}


def record_of(server: ServerProcess, upload_id: str) -> dict[str, object] | None:
    """The content of an upload's `.info`; None if it does not exist, or a kill left it empty."""
    try:
        record: dict[str, object] = json.loads(server.info_file(upload_id).read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    return record


def files_below(directory: Path) -> Iterator[Path]:
    """Also while others remove files and directories."""
    for parent, _, names in os.walk(directory):
        yield from (Path(parent, name) for name in names)


def left_in_state(directory: Path) -> Iterator[Path]:
    """Half-written records and half-joined files; what belongs there is a few bytes long at most."""
    for file in files_below(directory):
        # The sweep that this waits for removes files at the same time.
        with suppress(FileNotFoundError):
            status = file.stat()
            is_note = file.name in NOTES
            if S_ISREG(status.st_mode) and status.st_size > SMALL and not is_note:
                yield file
