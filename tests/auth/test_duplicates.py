"""The duplicate check with owners: it discloses only an owner's own uploads."""

from __future__ import annotations

from tests.auth.people import SECRET, access, bearer
from tests.conftest import MakeServer
from tests.support.tus import Tus, metadata


def test_an_owner_is_told_where_to_go_on_and_others_nothing(make_server: MakeServer) -> None:
    env = {"TUSD_JWT_SECRET": SECRET}
    server = make_server("--auth", "jwt", "--duplicates", "on", env=env)
    tus = Tus(server)
    study = {"Upload-Metadata": metadata(study="1.2.3")}
    first = tus.create(10, body=b"01234", headers={**bearer(access()), **study})
    assert first.status == 201
    again = tus.create(10, headers={**bearer(access()), **study})
    assert (again.status, again["Location"]) == (409, first["Location"])
    assert again["Upload-Offset"] == "5"
    # Somebody else has the same study, and learns nothing of this.
    assert tus.create(10, headers={**bearer(access("bob")), **study}).status == 201
