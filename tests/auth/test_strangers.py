"""Other owners' uploads look like none, whatever state they are in, also as parts of a final."""

from __future__ import annotations

import pytest

from tests.auth.people import access, bearer
from tests.support.tus import Tus, id_of, path_of
from tests.support.wire import Response

ALICE, BOB = bearer(access("alice")), bearer(access("bob"))
UNKNOWN = f"/files/{'0' * 32}"


def finished_part(tus: Tus) -> str:
    return tus.new(5, headers={**ALICE, "Upload-Concat": "partial"}, body=b"hello")


def in_state(tus: Tus, state: str) -> str:
    """The path of an upload of Alice's."""
    if state == "final":
        concat = f"final;{finished_part(tus)} {finished_part(tus)}"
        return path_of(tus.create(headers={**ALICE, "Upload-Concat": concat})["Location"])
    path = finished_part(tus)
    file = tus.server.data_file(id_of(path))
    if state == "without bytes":
        file.unlink()
    elif state == "damaged":
        file.write_bytes(b"hell")
    elif state == "gone":
        assert tus.delete(path, ALICE).status == 204
    return path


def answers(tus: Tus, path: str) -> dict[str, tuple[int, str | None, bytes]]:
    """What a stranger learns by every kind of request."""
    watch = {**BOB, "Accept": "application/vnd.tusd-py.progress+json"}
    asked: dict[str, Response] = {
        "head": tus.head(path, BOB),
        "get": tus.get(path, BOB),
        "watch": tus.get(path, watch),
        "patch": tus.patch(path, 5, b"x", BOB),
        "delete": tus.delete(path, BOB),
    }
    for name, url in (
        ("join", path),
        ("join by a prefixed URL", f"http://proxy.example/files{path}"),
        ("join an encoded id", f"/files/%{ord(id_of(path)[0]):x}{id_of(path)[1:]}"),
    ):
        asked[name] = tus.create(headers={**BOB, "Upload-Concat": f"final;{url}"})
    return {name: (each.status, each.get("Retry-After"), each.body) for name, each in asked.items()}


@pytest.mark.parametrize("state", ["finished", "final", "without bytes", "damaged", "gone"])
def test_a_stranger_learns_nothing(tus: Tus, state: str) -> None:
    assert answers(tus, in_state(tus, state)) == answers(tus, UNKNOWN)


def test_an_owner_is_told_that_a_part_is_damaged(tus: Tus) -> None:
    for state, status in (("damaged", 500), ("without bytes", 503)):
        for prefix in ("", "/files"):
            url = prefix + in_state(tus, state)
            assert tus.create(headers={**ALICE, "Upload-Concat": f"final;{url}"}).status == status
