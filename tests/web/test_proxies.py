"""Behind proxies: Location as the client sees it, from trusted proxies only."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.conftest import MakeServer
from tests.support.tus import Tus, id_of, metadata, path_of
from tests.support.wire import Connection

TLS_AT_THE_EDGE = {
    "Host": "up.example",
    "X-Forwarded-For": "198.51.100.7",
    "X-Forwarded-Proto": "https",
}


PREFIX_TAKEN_OFF = {
    "Host": "inner",
    "X-Forwarded-For": "198.51.100.7",
    "X-Forwarded-Proto": "https",
    "X-Forwarded-Host": "up.example",
    "X-Forwarded-Prefix": "/app",
}


def location(tus: Tus, headers: dict[str, str]) -> str:
    response = tus.create(1, headers=headers)
    assert response.status == 201
    return response["Location"]


class TestWithoutTrust:
    def test_location_is_where_the_request_went(self, tus: Tus) -> None:
        assert location(tus, {}).startswith(f"http://127.0.0.1:{tus.server.port}/files/")
        assert location(tus, {"Host": "up.example:81"}).startswith("http://up.example:81/files/")

    @pytest.mark.parametrize(
        "forwarded",
        [
            TLS_AT_THE_EDGE,
            {"Host": "up.example", "X-Forwarded-Host": "evil.example", "X-Forwarded-Prefix": "/x"},
            {"Host": "up.example", "X-Forwarded-Port": "444"},
            {"Host": "up.example", "Forwarded": "for=1.2.3.4;host=evil.example;proto=https"},
        ],
    )
    def test_anybody_may_say_anything(self, tus: Tus, forwarded: dict[str, str]) -> None:
        assert location(tus, forwarded).startswith("http://up.example/files/")

    @pytest.mark.parametrize("host", ["a@b", "a/b", "a b", "a\\b", '"><script>', "a:99999", "ä"])
    def test_a_host_that_is_none_is_not_repeated(self, tus: Tus, host: str) -> None:
        response = tus.create(1, headers={"Host": host})
        if response.status != 400:
            assert response["Location"].startswith(f"http://127.0.0.1:{tus.server.port}/files/")


class TestTrusted:
    def test_behind_tls(self, make_server: MakeServer) -> None:
        tus = Tus(make_server("--behind-proxy", "127.0.0.1"))
        assert location(tus, TLS_AT_THE_EDGE).startswith("https://up.example/files/")

    def test_every_field(self, make_server: MakeServer) -> None:
        tus = Tus(make_server("--behind-proxy", "10.0.0.0/8,127.0.0.0/8"))
        by_family = {
            "X-Forwarded-Proto": "https",
            "X-Forwarded-Host": "up.example",
            "X-Forwarded-Port": "8443",
            "X-Forwarded-Prefix": "/app/",
        }
        assert location(tus, by_family).startswith("https://up.example:8443/app/files/")
        by_rfc = {"Forwarded": 'for="[2001:db8::7]:4711";proto=https;host="up.example:8443"'}
        assert location(tus, by_rfc).startswith("https://up.example:8443/files/")

    def test_without_value_this_machine_and_private_networks_are_meant(
        self, make_server: MakeServer
    ) -> None:
        tus = Tus(make_server("--behind-proxy"))
        assert location(tus, TLS_AT_THE_EDGE).startswith("https://up.example/files/")

    def test_by_environment(self, make_server: MakeServer) -> None:
        tus = Tus(make_server(env={"TUSD_BEHIND_PROXY": "127.0.0.1"}))
        assert location(tus, TLS_AT_THE_EDGE).startswith("https://up.example/files/")

    def test_others_are_not(self, make_server: MakeServer) -> None:
        tus = Tus(make_server("--behind-proxy", "10.0.0.0/8"))
        assert location(tus, TLS_AT_THE_EDGE).startswith("http://up.example/files/")

    def test_a_client_cannot_speak_for_the_proxy(self, make_server: MakeServer) -> None:
        """Its values precede those that the proxy appends."""
        tus = Tus(make_server("--behind-proxy", "127.0.0.1"))
        mixed = {
            "X-Forwarded-For": "10.0.0.1, 198.51.100.7",
            "X-Forwarded-Proto": "http, https",
            "X-Forwarded-Host": "evil.example, up.example",
        }
        assert location(tus, mixed).startswith("https://up.example/files/")
        appended = {
            "Forwarded": "for=10.0.0.1;host=evil.example, for=198.51.100.7;host=up.example",
        }
        assert location(tus, appended).startswith("http://up.example/files/")

    def test_the_log_names_the_client(self, make_server: MakeServer) -> None:
        server = make_server("--behind-proxy", "127.0.0.1", "--log-format", "json")
        tus = Tus(server)
        location(tus, {"X-Forwarded-For": "6.6.6.6, 198.51.100.7"})
        server.wait_for_line('"client": ?"198.51.100.7')
        assert "6.6.6.6" not in server.log()

    def test_a_unix_socket(self, make_server: MakeServer, tmp_path: Path) -> None:
        for trusted, scheme in (("unix", "https"), ("127.0.0.1", "http")):
            sock = tmp_path / trusted
            make_server("--unix-sock", str(sock), "--behind-proxy", trusted)
            with Connection(str(sock)) as connection:
                headers = {"Tus-Resumable": "1.0.0", "Upload-Length": "1", **TLS_AT_THE_EDGE}
                created = connection.request("POST", "/files/", headers)
            assert created["Location"].startswith(f"{scheme}://up.example/files/")

    def test_what_is_no_proxy_is_named(self, make_server: MakeServer) -> None:
        server = make_server("--behind-proxy", "up.example", launch=True)
        assert server.wait() == 2
        assert "up.example" in server.log()


class TestWholeUploads:
    """Through a proxy that takes a prefix off, as the client sees them."""

    def test_an_upload_is_found_where_location_says(self, make_server: MakeServer) -> None:
        tus = Tus(make_server("--behind-proxy", "127.0.0.1"))
        outside = location(tus, PREFIX_TAKEN_OFF)
        assert outside.startswith("https://up.example/app/files/")
        inside = path_of(outside).removeprefix("/app")
        assert tus.patch(inside, 0, b"x", PREFIX_TAKEN_OFF)["Upload-Offset"] == "1"
        assert tus.get(inside, PREFIX_TAKEN_OFF).body == b"x"

    @pytest.mark.parametrize("form", ["absolute", "path", "as the server sees it"])
    def test_parts_are_joined_by_the_urls_that_the_client_knows(
        self, make_server: MakeServer, form: str
    ) -> None:
        tus = Tus(make_server("--behind-proxy", "127.0.0.1"))
        partial = {**PREFIX_TAKEN_OFF, "Upload-Concat": "partial"}
        urls = []
        for data in (b"one", b"two"):
            created = tus.create(3, headers=partial, body=data)
            url = created["Location"]
            if form == "path":
                url = urlsplit(url).path
            elif form == "as the server sees it":
                url = path_of(url).removeprefix("/app")
            urls.append(url)
        final = tus.create(headers={**PREFIX_TAKEN_OFF, "Upload-Concat": "final;" + " ".join(urls)})
        assert final.status == 201
        inside = path_of(final["Location"]).removeprefix("/app")
        assert tus.get(inside, PREFIX_TAKEN_OFF).body == b"onetwo"


class TestFinals:
    """Behind a proxy that takes a prefix off and rewrites Location, and says nothing of it."""

    FORMS = (
        "https://up.example{path}",
        "https://up.example/app{path}",
        "http://other.example:8080/deep/er{path}",
        "//up.example/app{path}",
        "{path}",
        "/app{path}",
        "/app{encoded}",
        "/files{path}",
        "https://up.example/app{path}?x=1#y",
        "{id}",
        "./{id}",
    )

    @staticmethod
    def url(form: str, path: str) -> str:
        encoded = "".join(f"%{ord(character):02x}" for character in path)
        return form.format(path=path, encoded=encoded, id=id_of(path))

    @pytest.mark.parametrize("form", FORMS)
    def test_are_joined_by_the_urls_that_the_client_was_told(self, tus: Tus, form: str) -> None:
        parts = [tus.finished(data, {"Upload-Concat": "partial"}) for data in (b"one", b"two")]
        urls = " ".join(self.url(form, part) for part in parts)
        final = tus.create(headers={"Upload-Concat": f"final;{urls}"})
        assert final.status == 201
        assert tus.get(path_of(final["Location"])).body == b"onetwo"

    @pytest.mark.parametrize(
        "form",
        [
            "https://up.example/app/elsewhere/{id}",
            "https://up.example/app{path}.info",
            "https://up.example/app/files/%2e%2e/{id}",
            "https://up.example/app/files/../files/.tusd-py/{id}",
            "https://up.example/app/files//{id}",
            "/app/files/",
            "https://up.example/app/files/{id}%00",
        ],
    )
    def test_name_nothing_else(self, tus: Tus, form: str) -> None:
        part = tus.finished(b"one", {"Upload-Concat": "partial"})
        before = tus.data_files()
        urls = f"{part} {self.url(form, part)}"
        assert tus.create(headers={"Upload-Concat": f"final;{urls}"}).status == 404
        assert tus.data_files() == before

    @pytest.mark.parametrize("prefix", ["", "/app", "/app/files"])
    def test_of_uploads_under_the_root(self, make_server: MakeServer, prefix: str) -> None:
        tus = Tus(make_server("--base-path", "/"))
        part = tus.finished(b"one", {"Upload-Concat": "partial"})
        final = tus.create(
            headers={"Upload-Concat": f"final;https://up.example{prefix}{part} {part}"}
        )
        assert final.status == 201
        assert tus.get(path_of(final["Location"])).body == b"oneone"

    def test_of_ids_with_slashes(self, make_server: MakeServer, tmp_path: Path) -> None:
        """The base path also occurs in the id: the reading that exists is used."""
        hook = tmp_path / "ids.py"
        hook.write_text(
            "from tusd_py.events.model import Changes\n"
            "async def pre_create(event):\n"
            "    return Changes(id=event.upload.metadata['id'].decode())\n"
        )
        tus = Tus(make_server("--hook", str(hook)))
        fields = {"Upload-Concat": "partial", "Upload-Metadata": metadata(id="a/files/b")}
        part = tus.finished(b"one", fields)
        assert part == "/files/a/files/b"
        fields = {
            "Upload-Concat": f"final;https://up.example/app{part} {part}",
            "Upload-Metadata": metadata(id="whole"),
        }
        final = tus.create(headers=fields)
        assert final.status == 201
        assert tus.get(path_of(final["Location"])).body == b"oneone"


class TestRelativeLocation:
    def test_is_a_path(self, make_server: MakeServer) -> None:
        tus = Tus(make_server("--relative-location"))
        where = location(tus, TLS_AT_THE_EDGE)
        assert where.startswith("/files/")
        assert tus.head(where).status == 200

    def test_with_the_prefix_of_a_trusted_proxy(self, make_server: MakeServer) -> None:
        tus = Tus(make_server("--relative-location", "--behind-proxy", "127.0.0.1"))
        assert location(tus, {"X-Forwarded-Prefix": "/app"}).startswith("/app/files/")
