"""The address of a request behind proxies, with plain ASGI scopes."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tusd_py.web.proxy_headers import External, Proxies

PROXY = "10.0.0.1"
TRUSTED = ("10.0.0.0/8", "2001:db8:aaaa::/48")


def scope(
    *headers: tuple[str, str],
    client: tuple[str, int] | None = (PROXY, 5000),
    server: tuple[str, int | None] | None = ("192.0.2.1", 8080),
    scheme: str = "http",
) -> dict[str, Any]:
    return {
        "type": "http",
        "scheme": scheme,
        "client": client,
        "server": server,
        "headers": [(name.lower().encode(), value.encode("latin-1")) for name, value in headers],
    }


HOST = ("Host", "inner:8080")


def external(*headers: tuple[str, str], trusted: tuple[str, ...] = TRUSTED) -> External:
    return Proxies(trusted).external(scope(HOST, *headers))


UNTOUCHED = External("http", "inner:8080", "", "10.0.0.1:5000")


class TestWithoutProxies:
    def test_the_host_field_tells(self) -> None:
        assert Proxies([]).external(scope(("Host", "a.example:81"))) == External(
            "http", "a.example:81", "", "10.0.0.1:5000"
        )

    @pytest.mark.parametrize(
        ("scheme", "host", "told"),
        [
            ("http", "a.example:80", "a.example"),
            ("https", "a.example:443", "a.example"),
            ("https", "a.example:80", "a.example:80"),
            ("http", "[2001:db8::1]:80", "[2001:db8::1]"),
            ("http", "[2001:db8::1]:8080", "[2001:db8::1]:8080"),
            ("http", "[::1]", "[::1]"),
            ("http", "127.0.0.1:8080", "127.0.0.1:8080"),
            ("http", "with_underscore.", "with_underscore."),
            ("http", "x", "x"),
        ],
    )
    def test_the_schemes_own_port_is_left_out(self, scheme: str, host: str, told: str) -> None:
        got = Proxies([]).external(scope(("Host", host), scheme=scheme))
        assert (got.scheme, got.host) == (scheme, told)

    @pytest.mark.parametrize(
        "host",
        [
            "",
            "user@evil.example",
            "a.example/path",
            "a.example\\b",
            "a b",
            "a.example:0",
            "a.example:65536",
            "a.example:",
            "a.example:8x",
            "a\tb",
            "a.example?x",
            "a.example#x",
            "a.example, b.example",
            "[::1",
            "[zz::1]",
            "[1.2.3.4]",
            "-a.example",
            "\xe4.example",
            "a" * 300,
            '"a"',
            "<script>",
        ],
    )
    def test_what_is_no_host_is_replaced_by_the_servers_address(self, host: str) -> None:
        assert Proxies([]).external(scope(("Host", host))).host == "192.0.2.1:8080"

    def test_two_host_fields_are_none(self) -> None:
        got = Proxies([]).external(scope(("Host", "a.example"), ("Host", "b.example")))
        assert got.host == "192.0.2.1:8080"

    @pytest.mark.parametrize(
        ("server", "host"),
        [
            (("2001:db8::1", 8080), "[2001:db8::1]:8080"),
            (("192.0.2.1", 80), "192.0.2.1"),
            (("/run/tus.sock", None), "localhost"),
            (None, "localhost"),
        ],
    )
    def test_without_host_field_the_server_tells(
        self, server: tuple[str, int | None] | None, host: str
    ) -> None:
        assert Proxies([]).external(scope(server=server)).host == host

    def test_forwarded_fields_of_strangers_do_not_count(self) -> None:
        stranger = scope(
            HOST,
            ("Forwarded", "for=1.2.3.4;host=evil.example;proto=https"),
            ("X-Forwarded-For", "1.2.3.4"),
            ("X-Forwarded-Host", "evil.example"),
            ("X-Forwarded-Proto", "https"),
            ("X-Forwarded-Port", "444"),
            ("X-Forwarded-Prefix", "/evil"),
            client=("203.0.113.9", 5000),
        )
        expected = External("http", "inner:8080", "", "203.0.113.9:5000")
        for trusted in ([], list(TRUSTED), ["unix"]):
            assert Proxies(trusted).external(stranger) == expected

    def test_an_ipv6_peer_is_written_with_brackets(self) -> None:
        got = Proxies([]).external(scope(HOST, client=("2001:db8::5", 5000)))
        assert got.client == "[2001:db8::5]:5000"


class TestWhoIsTrusted:
    @pytest.mark.parametrize(
        ("trusted", "peer", "counts"),
        [
            ("10.0.0.1", "10.0.0.1", True),
            ("10.0.0.1", "10.0.0.2", False),
            ("10.0.0.0/8", "10.255.0.1", True),
            ("10.0.0.7/8", "10.255.0.1", True),
            ("10.0.0.0/8", "::ffff:10.1.2.3", True),
            ("10.0.0.0/8", "11.0.0.1", False),
            ("::1", "::1", True),
            ("fe80::/10", "fe80::1%eth0", True),
            ("2001:db8::/32", "2001:db9::1", False),
            ("*", "203.0.113.9", True),
            ("unix", "203.0.113.9", False),
            ("127.0.0.1", "not an address", False),
        ],
    )
    def test_by_address_and_network(self, trusted: str, peer: str, counts: bool) -> None:
        got = Proxies([trusted]).external(
            scope(HOST, ("X-Forwarded-Proto", "https"), client=(peer, 1))
        )
        assert got.scheme == ("https" if counts else "http")

    def test_peers_of_a_unix_socket(self) -> None:
        by_socket = scope(
            HOST, ("X-Forwarded-Proto", "https"), client=None, server=("/run/tus.sock", None)
        )
        assert Proxies(["unix"]).external(by_socket).scheme == "https"
        assert Proxies(["*"]).external(by_socket).scheme == "https"
        assert Proxies(["10.0.0.0/8"]).external(by_socket).scheme == "http"

    def test_a_tcp_peer_that_is_gone_is_no_unix_socket(self) -> None:
        gone = scope(HOST, ("X-Forwarded-Proto", "https"), client=None)
        for trusted in (["unix"], ["*"], ["10.0.0.0/8"]):
            assert Proxies(trusted).external(gone).scheme == "http"

    @pytest.mark.parametrize("entry", ["", "10.0.0.0/33", "example.com", "10.0.0.", "**"])
    def test_what_names_nobody_is_refused(self, entry: str) -> None:
        with pytest.raises(ValueError, match="is not an IP address"):
            Proxies(["127.0.0.1", entry])


class TestForwarded:
    def test_everything_it_can_tell(self) -> None:
        got = external(("Forwarded", "for=192.0.2.60;proto=https;by=203.0.113.43;host=up.example"))
        assert got == External("https", "up.example", "", "192.0.2.60")

    @pytest.mark.parametrize(
        ("node", "client"),
        [
            ('"[2001:db8:cafe::17]:4711"', "[2001:db8:cafe::17]:4711"),
            ('"[2001:db8:cafe::17]"', "2001:db8:cafe::17"),
            ('"[2001:DB8::17]:47a"', "2001:db8::17"),
            ('"192.0.2.43:47011"', "192.0.2.43:47011"),
            ("192.0.2.43", "192.0.2.43"),
            ('"192.0.2.\\43"', "192.0.2.43"),
            ('"[::ffff:192.0.2.43]:9"', "192.0.2.43:9"),
            ("unknown", "10.0.0.1:5000"),
            ("_hidden", "10.0.0.1:5000"),
            ('"_gazonk:_port"', "10.0.0.1:5000"),
            ('"[2001:db8::17"', "10.0.0.1:5000"),
            ('"[2001:db8::17]x"', "10.0.0.1:5000"),
            ('""', "10.0.0.1:5000"),
        ],
    )
    def test_the_client(self, node: str, client: str) -> None:
        got = external(("Forwarded", f"for={node};proto=https"))
        assert (got.scheme, got.client) == ("https", client)

    def test_names_and_scheme_in_any_case_with_quotes_and_blanks(self) -> None:
        got = external(
            ("Forwarded", ' For="192.0.2.1" ;  ;PROTO=HTTPS; Host="up.example:8443" ,, ')
        )
        assert got == External("https", "up.example:8443", "", "192.0.2.1")

    def test_only_hops_that_trusted_proxies_wrote(self) -> None:
        spoofed = "for=6.6.6.6;host=evil.example;proto=http"
        edge = "for=198.51.100.7;host=up.example;proto=https"
        inner = "for=10.9.9.9;host=edge.internal;proto=http"
        assert external(("Forwarded", f"{spoofed}, {edge}")) == External(
            "https", "up.example", "", "198.51.100.7"
        )
        assert external(("Forwarded", f"{spoofed}, {edge}, {inner}")) == External(
            "https", "up.example", "", "198.51.100.7"
        )
        assert external(("Forwarded", f"{spoofed}, {edge}"), ("Forwarded", inner)) == External(
            "https", "up.example", "", "198.51.100.7"
        )

    def test_a_hop_that_hides_its_client_ends_the_chain(self) -> None:
        got = external(("Forwarded", "for=6.6.6.6;host=evil.example, for=unknown;proto=https"))
        assert got == External("https", "inner:8080", "", "10.0.0.1:5000")

    def test_what_a_farther_hop_leaves_out_a_nearer_one_tells(self) -> None:
        got = external(("Forwarded", "for=198.51.100.7, for=10.2.2.2;proto=https;host=up.example"))
        assert got == External("https", "up.example", "", "198.51.100.7")

    def test_trusting_everybody_takes_the_farthest(self) -> None:
        got = external(
            ("Forwarded", "for=1.1.1.1;host=a.example, for=2.2.2.2;host=b.example"),
            trusted=("*",),
        )
        assert got == External("http", "a.example", "", "1.1.1.1")

    @pytest.mark.parametrize(
        "value",
        [
            'for="10.0.0.1',
            'for="x, for=198.51.100.7;proto=https',
            'host=", for="[2001:db8::1]";proto=https',
            "for=1.2.3.4;for=1.2.3.4;proto=https",
            "for;proto=https",
            "for=;proto=https",
            "for =1.2.3.4;proto=https",
            "for= 1.2.3.4;proto=https",
            "for=[::1];proto=https",
            'for="1.2.3.4"5;proto=https',
            "proto=https for=1.2.3.4",
            'proto=https;host="a\x01b"',
            "1.2.3.4",
            "",
            ",",
        ],
    )
    def test_malformed_is_absent(self, value: str) -> None:
        assert external(("Forwarded", value)) == UNTOUCHED

    @pytest.mark.parametrize(
        "host", ["a@b", "a/b", "a b", "a\\\\b", "a:b", "", "a\tb", "a?b", "[::1", "a,b"]
    )
    def test_a_dangerous_host_does_not_count_but_the_rest_does(self, host: str) -> None:
        got = external(("Forwarded", f'for=1.2.3.4;proto=https;host="{host}"'))
        assert got == External("https", "inner:8080", "", "1.2.3.4")

    @pytest.mark.parametrize("proto", ["ftp", "javascript", "wss", '"https:"', '""'])
    def test_no_other_schemes(self, proto: str) -> None:
        got = external(("Forwarded", f"for=1.2.3.4;proto={proto};host=up.example"))
        assert got == External("http", "up.example", "", "1.2.3.4")


class TestForwardedFamily:
    def test_behind_tls(self) -> None:
        got = external(
            ("X-Forwarded-For", "198.51.100.7"),
            ("X-Forwarded-Proto", "https"),
            ("X-Forwarded-Host", "up.example"),
        )
        assert got == External("https", "up.example", "", "198.51.100.7")

    def test_the_host_field_serves_where_the_proxy_keeps_it(self) -> None:
        kept = scope(("Host", "up.example:443"), ("X-Forwarded-Proto", "https"))
        assert Proxies(TRUSTED).external(kept).host == "up.example"

    @pytest.mark.parametrize(
        ("host", "proto", "port", "told"),
        [
            ("up.example", "https", "8443", "up.example:8443"),
            ("up.example", "https", "443", "up.example"),
            ("up.example", "http", "80", "up.example"),
            ("up.example", "https", "80", "up.example:80"),
            ("up.example:8080", "https", "443", "up.example:8080"),
            ("up.example:443", "https", "8443", "up.example"),
            ("up.example:80", "https", "443", "up.example:80"),
            ("up.example:8443", "https", "", "up.example:8443"),
            ("[2001:db8::1]", "https", "8443", "[2001:db8::1]:8443"),
            ("[2001:db8::1]:1", "https", "443", "[2001:db8::1]:1"),
            ("up.example", "https", "0", "up.example"),
            ("up.example", "https", "65536", "up.example"),
            ("up.example", "https", "+443", "up.example"),
            ("up.example", "https", "8443, 443", "up.example"),
        ],
    )
    def test_the_port(self, host: str, proto: str, port: str, told: str) -> None:
        got = external(
            ("X-Forwarded-Proto", proto), ("X-Forwarded-Host", host), ("X-Forwarded-Port", port)
        )
        assert got.host == told

    def test_the_port_beside_a_host_that_the_proxy_keeps(self) -> None:
        got = external(("X-Forwarded-Proto", "https"), ("X-Forwarded-Port", "8443"))
        assert got.host == "inner:8443"

    def test_a_client_cannot_put_itself_in_front(self) -> None:
        got = external(
            ("X-Forwarded-For", "6.6.6.6, 198.51.100.7"),
            ("X-Forwarded-Proto", "http, https"),
            ("X-Forwarded-Host", "evil.example, up.example"),
        )
        assert got == External("https", "up.example", "", "198.51.100.7")

    def test_a_chain_of_trusted_proxies(self) -> None:
        got = external(
            ("X-Forwarded-For", "6.6.6.6, 198.51.100.7, 10.3.3.3"),
            ("X-Forwarded-Proto", "ftp, https, http"),
            ("X-Forwarded-Host", "evil.example, up.example, edge.internal"),
        )
        assert got == External("https", "up.example", "", "198.51.100.7")

    def test_a_chain_whose_edge_alone_told_the_host(self) -> None:
        got = external(
            ("X-Forwarded-For", "198.51.100.7, 10.3.3.3"),
            ("X-Forwarded-Proto", "https"),
            ("X-Forwarded-Host", "up.example"),
        )
        assert got == External("https", "up.example", "", "198.51.100.7")

    @pytest.mark.parametrize(
        ("value", "client"),
        [
            ("198.51.100.7:4711", "198.51.100.7:4711"),
            ("2001:db8::7", "2001:db8::7"),
            ("[2001:db8::7]:4711", "[2001:db8::7]:4711"),
            ("2001:db8:aaaa::1", "2001:db8:aaaa::1"),
            ("198.51.100.7, 2001:db8:aaaa::1", "198.51.100.7"),
            ("198.51.100.7, [2001:db8:aaaa::1]:80", "198.51.100.7"),
            ("<script>", "10.0.0.1:5000"),
            ("198.51.100.7, nonsense", "10.0.0.1:5000"),
            (", ,", "10.0.0.1:5000"),
        ],
    )
    def test_the_client(self, value: str, client: str) -> None:
        assert external(("X-Forwarded-For", value)).client == client

    @pytest.mark.parametrize("host", ["a@b", "a/b", "a b", "a\\b", "a:b", "//a", "a?b", "\xfc"])
    def test_dangerous_hosts_do_not_count(self, host: str) -> None:
        assert external(("X-Forwarded-Host", host)) == UNTOUCHED

    @pytest.mark.parametrize("proto", ["ftp", "javascript:", "https://x", "h\x00ttps"])
    def test_no_other_schemes(self, proto: str) -> None:
        assert external(("X-Forwarded-Proto", proto)) == UNTOUCHED


class TestPrefix:
    @pytest.mark.parametrize(
        ("value", "prefix"),
        [
            ("/app", "/app"),
            ("/app/", "/app"),
            ("/a/b-c_d~e.f/%20", "/a/b-c_d~e.f/%20"),
            ("/", ""),
            ("", ""),
            ("app", ""),
            ("//evil.example", ""),
            ("/a//b", ""),
            ("/a/../b", ""),
            ("/..", ""),
            ("/./a", ""),
            ("/a/...b", "/a/...b"),
            ("/a\\b", ""),
            ("/a b", ""),
            ("/a?b", ""),
            ("/a#b", ""),
            ("/<a>", ""),
            ("/a\x00", ""),
            ("https://evil.example", ""),
            ("/evil, /app", "/app"),
            ("/a" * 17, ""),
            ("/" + "a" * 1100, ""),
        ],
    )
    def test_only_a_plain_path(self, value: str, prefix: str) -> None:
        got = external(("X-Forwarded-Prefix", value))
        assert got == External("http", "inner:8080", prefix, "10.0.0.1:5000")

    def test_beside_forwarded(self) -> None:
        got = external(("Forwarded", "proto=https;host=up.example"), ("X-Forwarded-Prefix", "/app"))
        assert got == External("https", "up.example", "/app", "10.0.0.1:5000")


class TestBothFamilies:
    def test_that_agree(self) -> None:
        got = external(
            ("Forwarded", 'for="198.51.100.7:4711";proto=https;host=UP.example'),
            ("X-Forwarded-For", "198.51.100.7"),
            ("X-Forwarded-Proto", "https"),
            ("X-Forwarded-Host", "up.example"),
        )
        assert got == External("https", "UP.example", "", "198.51.100.7:4711")

    @pytest.mark.parametrize(
        "forwarded",
        [
            "for=198.51.100.7;proto=https;host=evil.example",
            "for=6.6.6.6;proto=https;host=up.example",
            "for=198.51.100.7;proto=http;host=up.example",
        ],
    )
    def test_that_contradict_are_both_left_out_and_the_log_says_so_once(
        self, forwarded: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        proxies = Proxies(TRUSTED)
        for _ in range(3):
            got = proxies.external(
                scope(
                    HOST,
                    ("Forwarded", forwarded),
                    ("X-Forwarded-For", "198.51.100.7"),
                    ("X-Forwarded-Proto", "https"),
                    ("X-Forwarded-Host", "up.example"),
                )
            )
            assert got == UNTOUCHED
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        assert "evil" not in caplog.text

    @pytest.mark.parametrize(
        ("forwarded", "told"),
        [
            ("for=198.51.100.7", ("https", "up.example:8443", "198.51.100.7")),
            ("proto=https", ("https", "up.example:8443", "198.51.100.7")),
            ('host="up.example:8443"', ("https", "up.example:8443", "198.51.100.7")),
            ('for="198.51.100.7:9";proto=https', ("https", "up.example:8443", "198.51.100.7:9")),
            ("for=unknown;proto=https", ("https", "up.example:8443", "198.51.100.7")),
            ("by=10.0.0.1", ("https", "up.example:8443", "198.51.100.7")),
        ],
    )
    def test_one_that_tells_only_part_contradicts_nothing(
        self, forwarded: str, told: tuple[str, str, str], caplog: pytest.LogCaptureFixture
    ) -> None:
        got = external(
            ("Forwarded", forwarded),
            ("X-Forwarded-For", "198.51.100.7"),
            ("X-Forwarded-Proto", "https"),
            ("X-Forwarded-Host", "up.example:8443"),
        )
        assert (got.scheme, got.host, got.client) == told
        assert not caplog.records

    @pytest.mark.parametrize(
        "missing", ["X-Forwarded-For", "X-Forwarded-Proto", "X-Forwarded-Host"]
    )
    def test_what_the_others_leave_out_forwarded_tells(
        self, missing: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        family = {
            "X-Forwarded-For": "198.51.100.7",
            "X-Forwarded-Proto": "https",
            "X-Forwarded-Host": "up.example",
        }
        del family[missing]
        got = external(
            ("Forwarded", "for=198.51.100.7;proto=https;host=up.example"), *family.items()
        )
        assert got == External("https", "up.example", "", "198.51.100.7")
        assert not caplog.records

    def test_the_same_host_with_and_without_its_schemes_port(self) -> None:
        got = external(
            ("Forwarded", "proto=https;host=up.example"),
            ("X-Forwarded-Host", "up.example:443"),
        )
        assert (got.scheme, got.host) == ("https", "up.example")

    def test_a_port_beside_a_host_that_forwarded_tells_without_one(self) -> None:
        got = external(("Forwarded", "proto=https;host=up.example"), ("X-Forwarded-Port", "8443"))
        assert got.host == "up.example:8443"

    def test_a_malformed_one_leaves_the_other(self) -> None:
        got = external(("Forwarded", 'for="'), ("X-Forwarded-Proto", "https"))
        assert got.scheme == "https"


class TestHint:
    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("Forwarded", "proto=https"),
            ("X-Forwarded-Proto", "https"),
            ("X-Forwarded-For", "1.2.3.4"),
            ("X-Forwarded-Host", "up.example"),
            ("X-Forwarded-Port", "443"),
            ("X-Forwarded-Prefix", "/app"),
        ],
    )
    @pytest.mark.parametrize("trusted", [(), ("10.0.0.0/8",)])
    def test_fields_of_a_peer_that_is_not_trusted_are_told_once(
        self, trusted: tuple[str, ...], name: str, value: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        proxies = Proxies(trusted)
        for _ in range(3):
            proxies.external(scope(HOST, (name, value), client=("203.0.113.9", 5000)))
        (record,) = caplog.records
        assert name in record.message
        assert "--behind-proxy 203.0.113.9" in record.message
        assert value not in record.message

    def test_of_a_unix_socket(self, caplog: pytest.LogCaptureFixture) -> None:
        by_socket = scope(
            HOST, ("X-Forwarded-Proto", "https"), client=None, server=("/run/tus.sock", None)
        )
        Proxies([]).external(by_socket)
        assert "--behind-proxy unix" in caplog.text

    def test_requests_without_such_fields_and_trusted_peers_bring_none(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        Proxies([]).external(scope(HOST))
        external(("X-Forwarded-Proto", "https"))
        assert not caplog.records


class TestLength:
    """A field that is longer than chains of proxies make it counts as absent."""

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("Forwarded", "for=198.51.100.7;proto=https, " * 200 + "proto=https"),
            ("X-Forwarded-For", "198.51.100.7, " * 400),
            ("X-Forwarded-Proto", "https," * 1000),
            ("X-Forwarded-Host", "a.example," * 1000),
            ("X-Forwarded-Host", "a" * 300),
            ("X-Forwarded-Port", "443," * 2000),
            ("X-Forwarded-Prefix", "/app, " * 1000),
        ],
    )
    def test_of_one_field_and_of_many(self, name: str, value: str) -> None:
        assert external((name, value)) == UNTOUCHED
        if "," in value:
            assert external(*((name, part) for part in value.split(","))) == UNTOUCHED


def test_location() -> None:
    proxies = Proxies([])
    assert (
        proxies.location(External("https", "up.example:8443", "/app", ""), "/files/1")
        == "https://up.example:8443/app/files/1"
    )
    assert proxies.location(External("http", "[::1]", "", ""), "/files/1") == "http://[::1]/files/1"


TEXT = st.text(st.characters(max_codepoint=255), max_size=60)
PIECES = st.lists(
    st.one_of(
        st.sampled_from(
            ["for=", "host=", "proto=https", ";", ",", '"', "\\", "[::1]", "1.2.3.4", "a.example"]
        ),
        TEXT,
    ),
    max_size=12,
).map("".join)


@given(PIECES, PIECES, PIECES, PIECES)
def test_no_input_makes_it_fail_or_leave_its_form(
    forwarded: str, host: str, proto: str, prefix: str
) -> None:
    got = external(
        ("Forwarded", forwarded),
        ("X-Forwarded-Host", host),
        ("X-Forwarded-Proto", proto),
        ("X-Forwarded-Prefix", prefix),
        ("X-Forwarded-For", proto),
        trusted=("*",),
    )
    location = Proxies([]).location(got, "/files/1")
    assert got.scheme in ("http", "https")
    assert location.isascii()
    assert location.isprintable()
    assert not set(location) & set(' "<>\\@?#') - set(got.prefix)
    assert location.startswith(f"{got.scheme}://{got.host}/")
    assert "//" not in location.removeprefix(f"{got.scheme}://")
