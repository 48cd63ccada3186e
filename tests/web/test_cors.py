"""CORS over the wire: what a page of another origin can send and read."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from tests.conftest import MakeServer
from tests.support.tus import Tus, id_of
from tests.support.wire import Response

ORIGIN = "https://app.example.com"
PAGE = {"Origin": ORIGIN}
PREFLIGHT = {
    **PAGE,
    "Access-Control-Request-Method": "PATCH",
    "Access-Control-Request-Headers": "content-type,tus-resumable,upload-offset",
}


def cors_fields(response: Response) -> list[str]:
    return [name for name, _ in response.headers if name.lower().startswith("access-control-")]


def exposed(response: Response) -> set[str]:
    return {name.lower() for name in response.items("Access-Control-Expose-Headers")}


class TestPreflight:
    @pytest.mark.parametrize("where", ["collection", "upload", "unknown upload"])
    def test_allows_what_clients_send(self, tus: Tus, where: str) -> None:
        paths: dict[str, Callable[[], str]] = {
            "collection": lambda: tus.collection,
            "upload": lambda: tus.new(1),
            "unknown upload": lambda: tus.collection + "0" * 32,
        }
        response = tus.options(paths[where](), headers=PREFLIGHT)
        assert response.status == 204
        assert response["Access-Control-Allow-Origin"] == ORIGIN
        assert response.items("Access-Control-Allow-Methods") == [
            *("POST", "PUT", "HEAD", "PATCH", "OPTIONS", "GET", "DELETE")
        ]
        allowed = {name.lower() for name in response.items("Access-Control-Allow-Headers")}
        assert allowed >= {
            *("authorization", "content-type", "tus-resumable", "upload-offset", "upload-length"),
            *("upload-metadata", "upload-defer-length", "upload-concat", "upload-checksum"),
            *("x-http-method-override", "x-request-id", "x-requested-with", "range", "if-range"),
        }
        assert response["Access-Control-Max-Age"] == "86400"
        assert response["Vary"] == "Origin"

    def test_needs_no_version_and_stores_nothing(self, tus: Tus) -> None:
        before = tus.data_files()
        assert tus.options(headers={**PREFLIGHT, "Tus-Resumable": "9"}).status == 204
        assert tus.data_files() == before


class TestAnswers:
    def test_of_every_kind_name_the_origin(self, tus: Tus) -> None:
        path = tus.finished(b"12345")
        answers = [
            tus.create(5, headers=PAGE),
            tus.head(path, PAGE),
            tus.get(path, PAGE),
            tus.get(path, {**PAGE, "Range": "bytes=1-2"}),
            tus.get(path, {**PAGE, "Range": "bytes=9-"}),
            tus.get(path, {**PAGE, "If-None-Match": "*"}),
            tus.patch(tus.new(1), 0, b"x", PAGE),
            tus.patch(tus.new(1), 1, b"x", PAGE),
            tus.create(5, headers={**PAGE, "Tus-Resumable": "0.1"}),
            tus.head(tus.collection + "0" * 32, PAGE),
            tus.request("PUT", path, {**PAGE, "Tus-Resumable": "1.0.0"}),
            tus.delete(path, PAGE),
        ]
        statuses = [answer.status for answer in answers]
        assert statuses == [201, 200, 200, 206, 416, 304, 204, 409, 412, 404, 405, 204]
        for answer in answers:
            assert answer["Access-Control-Allow-Origin"] == ORIGIN
            assert answer["Vary"] == "Origin"
            assert "Access-Control-Allow-Credentials" not in answer

    def test_expose_every_field_of_ours_that_they_carry(self, make_server: MakeServer) -> None:
        tus = Tus(make_server("--max-size", "1MB"))
        named = {"Upload-Metadata": "filename YQ==", **PAGE}
        path = tus.new(5, headers=named, body=b"123")
        deferred = tus.new(None)
        finished = tus.finished(b"12345")
        answers = [
            tus.create(5, headers=named, body=b"1"),
            tus.head(path, PAGE),
            tus.head(deferred, PAGE),
            tus.head(tus.new(1, headers={"Upload-Concat": "partial"}), PAGE),
            tus.patch(path, 0, b"x", PAGE),
            tus.get(finished, PAGE),
            tus.get(finished, {**PAGE, "Range": "bytes=0-1"}),
            tus.options(headers=PAGE),
            tus.create(2_000_000, headers=PAGE),
        ]
        # What the Fetch Standard exposes anyway, and what no page has a use for.
        known = {"cache-control", "content-language", "content-length", "content-type"}
        known |= {"expires", "last-modified", "pragma", "vary", "connection", "server"}
        known |= {"x-content-type-options", "content-security-policy"}
        for answer in answers:
            own = {name.lower() for name, _ in answer.headers if name not in cors_fields(answer)}
            assert own - known <= exposed(answer)

    def test_without_origin_say_nothing_of_it(self, tus: Tus) -> None:
        for response in (tus.create(1), tus.options(), tus.get(tus.finished(b"1"))):
            assert cors_fields(response) == []
            assert "Vary" not in response


class TestSettings:
    def test_only_origins_that_match_as_a_whole(self, make_server: MakeServer) -> None:
        tus = Tus(make_server("--cors-allow-origin", r"https://(app|www)\.example\.com"))
        assert tus.create(1, headers=PAGE)["Access-Control-Allow-Origin"] == ORIGIN
        for stranger in (
            "https://app.example.com.evil.net",
            "https://evil-app.example.com",
            "https://appXexample.com",
            "http://app.example.com",
            "null",
        ):
            for response in (
                tus.options(headers={**PREFLIGHT, "Origin": stranger}),
                tus.create(1, headers={"Origin": stranger}),
            ):
                assert response.status in (201, 204)
                assert cors_fields(response) == []

    def test_credentials(self, make_server: MakeServer) -> None:
        known = ("--cors-allow-origin", re.escape(ORIGIN))
        tus = Tus(make_server("--cors-allow-credentials", *known))
        for response in (tus.options(headers=PREFLIGHT), tus.create(1, headers=PAGE)):
            assert response["Access-Control-Allow-Origin"] == ORIGIN
            assert response["Access-Control-Allow-Credentials"] == "true"
            assert response["Vary"] == "Origin"

    def test_a_private_network(self, make_server: MakeServer) -> None:
        name = "Access-Control-Allow-Private-Network"
        asking = {**PREFLIGHT, "Access-Control-Request-Private-Network": "true"}
        tus = Tus(make_server("--cors-allow-private-network", "--cors-allow-origin", ORIGIN))
        assert tus.options(headers=asking)[name] == "true"
        assert name not in tus.options(headers=PREFLIGHT)
        assert name not in tus.options(headers={**asking, "Origin": "https://evil.example"})
        assert name not in tus.create(1, headers={**PAGE, **asking})

    def test_a_private_network_is_not_allowed_by_itself(self, tus: Tus) -> None:
        asking = {**PREFLIGHT, "Access-Control-Request-Private-Network": "true"}
        assert "Access-Control-Allow-Private-Network" not in tus.options(headers=asking)

    def test_further_names(self, make_server: MakeServer) -> None:
        tus = Tus(
            make_server(
                *("--cors-allow-methods", "REPORT,LINK"),
                *("--cors-allow-headers", "X-Study"),
                *("--cors-expose-headers", "X-Seen"),
                *("--cors-max-age", "60"),
            )
        )
        response = tus.options(headers=PREFLIGHT)
        assert response.items("Access-Control-Allow-Methods")[-2:] == ["REPORT", "LINK"]
        assert "X-Study" in response.items("Access-Control-Allow-Headers")
        assert "Upload-Offset" in response.items("Access-Control-Allow-Headers")
        assert response["Access-Control-Max-Age"] == "60"
        assert "x-seen" in exposed(tus.create(1, headers=PAGE))

    def test_disabled(self, make_server: MakeServer) -> None:
        tus = Tus(make_server("--disable-cors"))
        created = tus.create(1, headers=PAGE)
        assert (created.status, cors_fields(created)) == (201, [])
        assert cors_fields(tus.options(headers=PREFLIGHT)) == []

    def test_an_expression_that_is_none_is_named(self, make_server: MakeServer) -> None:
        server = make_server("--cors-allow-origin", "(", launch=True)
        assert server.wait() == 2
        assert "cors-allow-origin" in server.log()


def test_uploads_work_from_a_page_step_by_step(tus: Tus) -> None:
    """The order of requests that a browser makes for a resumed upload."""
    assert tus.options(headers={**PREFLIGHT, "Access-Control-Request-Method": "POST"}).status == 204
    created = tus.create(4, headers=PAGE, body=b"ab")
    assert "location" in exposed(created)
    path = tus.collection + id_of(created["Location"])
    assert tus.options(path, PREFLIGHT).status == 204
    head = tus.head(path, PAGE)
    assert {"upload-offset", "upload-length"} <= exposed(head)
    assert tus.patch(path, int(head["Upload-Offset"]), b"cd", PAGE)["Upload-Offset"] == "4"
