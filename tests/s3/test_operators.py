"""The operators' API on uploads in a bucket."""

from __future__ import annotations

from tests.admin.conftest import ADMIN
from tests.admin.operator import Operator, address_of, new_code
from tests.conftest import MakeServer
from tests.s3.servers import BUCKET, ENVIRONMENT, S3Server
from tests.support.tus import Tus, id_of, metadata, path_of
from tests.support.waiting import wait_until


def test_uploads_in_a_bucket_are_listed_kept_downloaded_and_removed(
    seaweedfs: S3Server, prefix: str, make_server: MakeServer
) -> None:
    server = make_server(
        *("--s3-bucket", BUCKET, "--s3-endpoint", seaweedfs.endpoint),
        *("--s3-object-prefix", prefix, "--s3-info-prefix", prefix),
        *(*ADMIN, "--admin-show-metadata", "--expire-after", "1h"),
        env=ENVIRONMENT,
    )
    tus = Tus(server)
    named = {"Upload-Metadata": metadata(filename="there.zip")}
    finished = id_of(path_of(tus.create(5, body=b"hello", headers=named)["Location"]))
    unfinished = id_of(path_of(tus.create(50, body=b"hello")["Location"]))
    operator = Operator(address_of(server)).sign_in(new_code(server))
    wait_until(lambda: operator.get("/uploads")["total"] == 2, "both to be listed")
    rows = operator.get("/uploads")["uploads"]
    assert [row["id"] for row in rows] == [unfinished, finished]
    assert [(row["state"], row["offset"]) for row in rows] == [("uploading", 5), ("finished", 5)]
    [found] = operator.get("/uploads", q="there")["uploads"]
    assert found["id"] == finished
    assert operator.read(f"/content/{finished}").content == b"hello"
    assert operator.get("/overview")["free"] is None
    before = operator.get(f"/uploads/{unfinished}")["expires"]
    operator.act("extend", upload=unfinished, seconds=86_400)
    assert operator.get(f"/uploads/{unfinished}")["expires"] > before + 80_000
    assert tus.head(f"/files/{unfinished}")["Upload-Offset"] == "5"
    for upload_id in (finished, unfinished):
        operator.act("remove", upload=upload_id)
        assert tus.head(f"/files/{upload_id}").status == 410
    wait_until(lambda: operator.get("/overview")["known"] == 0, "the list to be empty")
