"""Renewal of upload tokens while an upload runs, so that no upload fails because of its duration."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from email.utils import parsedate_to_datetime

from tests.auth.people import GRACE, SECRET, TTL, access, bearer, upload_token
from tests.conftest import MakeServer
from tests.support.tus import Tus, id_of, path_of
from tests.support.waiting import wait_until
from tests.support.wire import Response

REFRESH = "/auth/refresh-upload-token"


def refresh(tus: Tus, token: str, upload_id: str | None = None) -> Response:
    body = b"" if upload_id is None else json.dumps({"upload_id": upload_id}).encode()
    return tus.request("POST", REFRESH, bearer(token), body)


def test_a_creation_answers_with_a_token_for_what_it_made(tus: Tus) -> None:
    path = ""
    for headers in ({}, {"Upload-Concat": "partial"}):
        before = time.time()
        response = tus.create(5, headers={**bearer(access()), **headers})
        assert response["Cache-Control"] == "no-store"
        expires = parsedate_to_datetime(response["Upload-Token-Expires"]).timestamp()
        assert before - 1 <= expires - TTL <= time.time() + 1
        path, token = path_of(response["Location"]), bearer(response["Upload-Token"])
        assert tus.patch(path, 0, b"12345", token).status == 204
    final = {**bearer(access()), "Upload-Concat": f"final;{path}"}
    joined = tus.create(headers=final)
    assert tus.head(path_of(joined["Location"]), bearer(joined["Upload-Token"])).status == 200


def test_a_renewed_token_is_a_document_and_works(tus: Tus) -> None:
    path = tus.new(10, headers=bearer(access()))
    shown = ((upload_token(id_of(path)), None), (access(), id_of(path)))
    for token, upload_id in shown:
        response = refresh(tus, token, upload_id)
        assert response.status == 200
        assert response["Cache-Control"] == "no-store"
        document = json.loads(response.body)
        assert document.keys() == {"upload_token", "token_type", "expires_in", "upload_id"}
        assert document["token_type"] == "Bearer"
        assert document["expires_in"] == TTL
        assert document["upload_id"] == id_of(path)
        assert tus.head(path, bearer(document["upload_token"])).status == 200


def test_renewal_ends_with_the_upload(tus: Tus) -> None:
    owner = bearer(access())
    path = tus.new(5, headers=owner)
    token = upload_token(id_of(path))
    assert tus.patch(path, 0, b"12345", owner).status == 204
    assert refresh(tus, token).status == 409
    assert tus.delete(path, owner).status == 204
    assert refresh(tus, token).status == 410
    assert refresh(tus, access(), id_of(path)).status == 404


def test_the_token_of_a_finished_part_is_renewed_until_it_is_joined(tus: Tus) -> None:
    headers = {**bearer(access()), "Upload-Concat": "partial"}
    response = tus.create(5, body=b"12345", headers=headers)
    old = upload_token(id_of(path_of(response["Location"])), age=TTL + GRACE / 2)
    token = json.loads(refresh(tus, old).body)["upload_token"]
    final = {**bearer(token), "Upload-Concat": f"final;{response['Location']}"}
    assert tus.create(headers=final).status == 201


def test_an_expired_upload_is_not_renewed(make_server: MakeServer) -> None:
    flags = ("--auth", "jwt", "--expire-after", "5s")
    tus = Tus(make_server(*flags, env={"TUSD_JWT_SECRET": SECRET}))
    path = tus.new(5, headers=bearer(access()))
    token = upload_token(id_of(path))
    assert refresh(tus, token).status == 200
    wait_until(lambda: refresh(tus, token).status == 410, "it to expire")


def test_renewals_of_one_upload_are_limited_and_others_are_not(make_server: MakeServer) -> None:
    flags = ("--auth", "jwt", "--upload-token-refreshes", "3")
    tus = Tus(make_server(*flags, env={"TUSD_JWT_SECRET": SECRET}))
    one, other = (upload_token(id_of(tus.new(5, headers=bearer(access())))) for _ in range(2))
    assert [refresh(tus, one).status for _ in range(5)] == [200, 200, 200, 429, 429]
    assert 0 < int(refresh(tus, one)["Retry-After"]) <= 60
    assert refresh(tus, other).status == 200


def test_a_patch_that_began_with_a_good_token_is_not_cut_off(make_server: MakeServer) -> None:
    flags = ("--auth", "jwt", "--upload-token-ttl", "4s")
    tus = Tus(make_server(*flags, env={"TUSD_JWT_SECRET": SECRET}))
    response = tus.create(20, headers=bearer(access()))
    path, token = path_of(response["Location"]), bearer(response["Upload-Token"])
    with tus.begin_patch(path, 0, 20, b"0123456789", token) as patch:
        patch.wait_stored()
        wait_until(lambda: _is_over(tus, token), "the token to run out")
        patch.send(b"0123456789")
        assert patch.response().status == 204


def _is_over(tus: Tus, token: dict[str, str]) -> bool:
    """Asked of an upload that there is not, so that the one that is being written is left alone."""
    return tus.head(f"{tus.collection}{'0' * 32}", token).status == 401


class Uploader:
    """Sends content by the token of its upload alone, as a client over a bad link does."""

    def __init__(self, tus: Tus, content: bytes) -> None:
        self.tus, self.content = tus, content
        response = tus.create(len(content), headers=bearer(access()))
        self.path = path_of(response["Location"])
        self.token: str = response["Upload-Token"]
        self.renewals = 0

    def renew(self) -> None:
        response = refresh(self.tus, self.token)
        assert response.status == 200, response
        self.token = json.loads(response.body)["upload_token"]
        self.renewals += 1

    def offset(self) -> int:
        """The offset of an upload; asked again with a new token after a 401."""
        response = self.tus.head(self.path, bearer(self.token))
        if response.status == 401:
            self.renew()
            response = self.tus.head(self.path, bearer(self.token))
        assert response.status == 200, response
        return int(response["Upload-Offset"])

    def send(self, until: int, step: int = 64 * 1024) -> None:
        """Sends on to an offset."""
        offset = self.offset()
        while offset < until:
            piece = self.content[offset : min(offset + step, until)]
            response = self.tus.patch(self.path, offset, piece, bearer(self.token))
            if response.status == 401:
                self.renew()
                continue
            assert response.status == 204, response
            offset += len(piece)

    def cut(self) -> None:
        """The connection goes in the middle of a body, and does not come back before the token has run out."""
        # It is good when the body begins.
        self.renew()
        offset = self.offset()
        with self.tus.begin_patch(
            self.path, offset, 200_000, self.content[offset : offset + 50_000], bearer(self.token)
        ) as patch:
            patch.wait_stored()
        old = bearer(self.token)
        wait_until(lambda: _is_over(self.tus, old), "the token to run out")


def test_a_long_upload_with_tokens_that_live_four_seconds(make_server: MakeServer) -> None:
    flags = ("--auth", "jwt", "--upload-token-ttl", "4s", "--upload-token-refreshes", "1000")
    server = make_server(*flags, env={"TUSD_JWT_SECRET": SECRET})
    tus = Tus(server)
    uploaders = [Uploader(tus, os.urandom(1_000_000)) for _ in range(8)]
    together(uploaders, lambda each: each.send(300_000))
    together(uploaders, Uploader.cut)
    together(uploaders, lambda each: each.send(600_000))
    server.kill9()
    server.restart()
    wait_until(lambda: _is_over(tus, bearer(uploaders[0].token)), "the tokens to run out")
    together(uploaders, lambda each: each.send(1_000_000))
    for each in uploaders:
        assert each.renewals >= 2
        stored = tus.get(each.path, bearer(access())).body
        assert hashlib.sha256(stored).digest() == hashlib.sha256(each.content).digest()


def together(uploaders: list[Uploader], do: Callable[[Uploader], None]) -> None:
    """Does it with all at once; fails if one does."""
    with ThreadPoolExecutor(len(uploaders)) as pool:
        for done in [pool.submit(do, each) for each in uploaders]:
            done.result()
