"""Downloads from a bucket: streamed as from files, or by a redirection to the bucket itself."""

from __future__ import annotations

import http.client
import random
import socket
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import botocore.session
import pytest

from tests.conftest import MakeServer
from tests.s3.servers import ACCESS_KEY, BUCKET, REGION, SECRET_KEY, S3Server
from tests.s3.test_server import Servers
from tests.support.tus import Tus, id_of, metadata

BODY = random.Random(5).randbytes(300_000)
IMAGE = {"Upload-Metadata": metadata(filename="Röntgen.png", filetype="image/png", study="7")}
PAGE = {"Upload-Metadata": metadata(filename="page.html", filetype="text/html")}


@pytest.fixture
def direct(make_server: MakeServer, seaweedfs: S3Server, prefix: str) -> Servers:
    """Servers without a proxy before the store, as URLs of the store are signed for its address."""
    return Servers(make_server, seaweedfs.endpoint, prefix)


def fetch(url: str, **headers: str) -> tuple[http.client.HTTPResponse, bytes]:
    """What anybody gets from the bucket by this URL."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.netloc, timeout=30)
    try:
        connection.request("GET", f"{parts.path}?{parts.query}", headers=headers)
        response = connection.getresponse()
        return response, response.read()
    finally:
        connection.close()


def test_ranges_and_conditions_of_a_streamed_download(direct: Servers) -> None:
    tus = Tus(direct())
    path = tus.finished(BODY, IMAGE)
    whole = tus.get(path)
    etag, modified = whole["ETag"], whole["Last-Modified"]
    assert (whole.status, whole.body) == (200, BODY)
    assert whole["Content-Type"] == "image/png"
    assert whole["Content-Disposition"].startswith("inline; ")
    for asked, start, end in (("0-0", 0, 1), ("299999-", 299_999, 300_000), ("-5", 299_995, None)):
        part = tus.get(path, {"Range": f"bytes={asked}"})
        assert (part.status, part.body) == (206, BODY[start:end])
        assert part["Content-Range"].endswith("/300000")
    beyond = tus.get(path, {"Range": "bytes=300000-"})
    assert (beyond.status, beyond["Content-Range"]) == (416, "bytes */300000")
    same, other = {"If-Range": etag}, {"If-Range": '"another"'}
    assert tus.get(path, {"Range": "bytes=1-2", **same}).status == 206
    assert tus.get(path, {"Range": "bytes=1-2", **other}).body == BODY
    assert tus.get(path, {"If-None-Match": etag}).status == 304
    assert tus.get(path, {"If-Modified-Since": modified}).status == 304
    assert tus.get(path, {"If-Match": '"another"'}).status == 412
    # The offset and the length, as for any upload: not the file.
    head = tus.head(path)
    assert (head.status, head["Upload-Length"], head.body) == (200, "300000", b"")


def test_a_download_is_redirected_to_a_url_that_lives_five_minutes(direct: Servers) -> None:
    server = direct("--s3-presigned-downloads", "--log-level", "debug")
    tus = Tus(server)
    path = tus.finished(BODY, IMAGE)
    answer = tus.get(path)
    assert (answer.status, answer["Cache-Control"], answer.body) == (307, "no-store", b"")
    assert answer.get("ETag") is None
    url = answer["Location"]
    assert parse_qs(urlsplit(url).query)["X-Amz-Expires"] == ["300"]
    response, body = fetch(url)
    assert (response.status, body) == (200, BODY)
    assert response.headers["Content-Type"] == "image/png"
    assert response.headers["Content-Disposition"] == (
        "inline; filename=\"Rontgen.png\"; filename*=UTF-8''R%C3%B6ntgen.png"
    )
    # What a client learnt from the bucket, it tells us at its next request: the bucket judges it.
    etag = response.headers["ETag"]
    for fields, status in (
        ({"Range": "bytes=5-9"}, 206),
        ({"Range": "bytes=5-9", "If-Range": etag}, 206),
        ({"If-Match": etag}, 200),
        ({"If-None-Match": etag}, 304),
        ({"Range": "bytes=300000-"}, 416),
    ):
        again = tus.get(path, fields)
        assert again.status == 307, fields
        assert fetch(again["Location"], **fields)[0].status == status, fields
    page = tus.get(tus.finished(b"<script>", PAGE))
    shown = fetch(page["Location"])[0].headers
    assert shown["Content-Type"] == "application/octet-stream"
    assert shown["Content-Disposition"].startswith("attachment; ")
    signature = parse_qs(urlsplit(url).query)["X-Amz-Signature"][0]
    log = server.log()
    assert "X-Amz" not in log
    assert signature not in log
    # HEAD asks for the offset, and what is not finished is not redirected to.
    assert tus.head(path).status == 200
    assert tus.get(tus.new(3)).status == 404
    assert tus.get("/files/unknown").status == 404


def test_access_is_checked_before_a_redirection(direct: Servers, tmp_path: Path) -> None:
    hook = tmp_path / "hook.py"
    hook.write_text(
        "from tusd_py import Reject\n"
        "def pre_access(event):\n"
        "    if event.request.method == 'GET' and 'x-owner' not in event.request.headers:\n"
        "        raise Reject(404)\n"
    )
    tus = Tus(direct("--s3-presigned-downloads", "--hook", f"{hook}"))
    path = tus.finished(b"hello")
    refused = tus.get(path)
    assert (refused.status, refused.get("Location")) == (404, None)
    assert tus.get(path, {"X-Owner": "yes"}).status == 307


def test_urls_name_the_store_as_clients_reach_it(direct: Servers) -> None:
    public = ("--s3-public-endpoint", "https://objects.example.org")
    tus = Tus(direct("--s3-presigned-downloads", *public))
    url = tus.get(tus.finished(b"hello"))["Location"]
    assert url.startswith(f"https://objects.example.org/{BUCKET}/")


def test_what_is_stored_with_the_object_is_the_operators_choice(
    direct: Servers, seaweedfs: S3Server, prefix: str
) -> None:
    chosen = ("--s3-cache-control", "private, max-age=60", "--s3-tags", "team=imaging,kind=scan")
    tus = Tus(direct(*chosen, "--s3-object-metadata", "study,filetype"))
    small = tus.finished(BODY, IMAGE)
    large = tus.finished(bytes(6 * 1024 * 1024), IMAGE)
    session = botocore.session.Session()
    session.set_credentials(ACCESS_KEY, SECRET_KEY)
    client = session.create_client("s3", endpoint_url=seaweedfs.endpoint, region_name=REGION)
    for path in (small, large):
        key = prefix + id_of(path)
        found = client.head_object(Bucket=BUCKET, Key=key)
        assert found["CacheControl"] == "private, max-age=60"
        ours = "tusd-py-"
        kept = {name: text for name, text in found["Metadata"].items() if not name.startswith(ours)}
        assert kept == {"study": "7", "filetype": "image/png"}
        tags = client.get_object_tagging(Bucket=BUCKET, Key=key)["TagSet"]
        assert {tag["Key"]: tag["Value"] for tag in tags} == {"team": "imaging", "kind": "scan"}
    client.close()


PAUSED = 70
"""More than a server makes requests to the store at a time."""


def test_clients_that_pause_their_downloads_leave_uploads_alone(direct: Servers) -> None:
    server = direct("--s3-timeout", "20s", "--s3-retry-time", "0")
    tus = Tus(server)
    large = bytes(16 * 1024 * 1024)
    path = tus.finished(large)
    with ExitStack() as stack:
        for _ in range(PAUSED):
            paused = socket.create_connection(("127.0.0.1", server.port), timeout=30)
            stack.enter_context(paused)
            paused.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            assert paused.recv(12) == b"HTTP/1.1 200"
        other = tus.finished(BODY)
        assert tus.offset(other) == len(BODY)
        assert tus.get(other).body == BODY
        assert tus.delete(other).status == 204
