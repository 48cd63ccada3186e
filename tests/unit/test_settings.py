"""Settings: sources, values, and error messages."""

from __future__ import annotations

import contextlib
import json
import tomllib
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr, ValidationError

from tests.support.settings import load
from tusd_py.cli import config
from tusd_py.process.sidecars import environment
from tusd_py.settings.load import Loaded, SettingsError
from tusd_py.settings.load import load as load_from
from tusd_py.settings.model import Settings
from tusd_py.settings.reference import HIDDEN, catalogue
from tusd_py.settings.reference import setting as declare
from tusd_py.settings.reference_page import markdown
from tusd_py.settings.types import PRIVATE_NETWORKS
from tusd_py.settings.units import (
    MAX_DURATION,
    MAX_SIZE,
    format_duration,
    format_size,
    parse_duration,
    parse_size,
)

ROOT = Path(__file__).parents[2]


def toml(directory: Path, text: str) -> str:
    path = directory / "tusd.toml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def problems(*argv: str, environ: Mapping[str, str] | None = None) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        load(argv, environ or {})
    return list(caught.value.problems)


def problem(*argv: str, environ: Mapping[str, str] | None = None) -> str:
    [only] = problems(*argv, environ=environ)
    return only


# --- sizes and durations --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("1048576", 1048576),
        ("512k", 512_000),
        ("10MB", 10_000_000),
        ("10 mb", 10_000_000),
        ("1GiB", 1024**3),
        ("1.5KiB", 1536),
        ("2T", 2 * 1000**4),
        ("7B", 7),
    ],
)
def test_a_size_has_the_bytes_that_its_unit_says(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text",
    ["", "MB", "-1", "1e6", "10 parsecs", "1 0", "٣", "0x10", "nan", f"{MAX_SIZE + 1}", "9EB"],
)
def test_what_is_not_a_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"give bytes|too large"):
        parse_size(text)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0),
        ("60", 60),
        ("1.5", 1.5),
        ("500ms", 0.5),
        ("20m", 1200),
        ("12h", 43_200),
        ("7d", 604_800),
        ("1h30m", 5400),
        ("1m 30s", 90),
    ],
)
def test_a_duration_has_the_seconds_that_its_units_say(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "d", "-1s", "1e3", "5 parsecs", "1y", "inf", "nan", "5s5", "٣s", "36501d"]
)
def test_what_is_not_a_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"give seconds|too long"):
        parse_duration(text)


@given(st.integers(0, MAX_SIZE))
def test_a_size_that_is_shown_reads_back_the_same(size: int) -> None:
    assert parse_size(format_size(size)) == size


@given(st.floats(1e-6, MAX_DURATION))
def test_a_duration_that_is_shown_reads_back_the_same(seconds: float) -> None:
    assert parse_duration(format_duration(seconds)) == seconds


@given(st.text())
def test_any_text_is_a_size_within_bounds_or_refused(text: str) -> None:
    with contextlib.suppress(ValueError):
        assert 0 <= parse_size(text) <= MAX_SIZE


@given(st.text(st.sampled_from("0123456789.msh d")) | st.text())
def test_any_text_is_a_duration_within_bounds_or_refused(text: str) -> None:
    with contextlib.suppress(ValueError):
        assert 0 <= parse_duration(text) <= MAX_DURATION


def test_sizes_and_durations_are_shown_in_their_largest_unit() -> None:
    assert [format_size(n) for n in (0, 999, 65536, 10_000_000, 1000, 1025)] == [
        "0",
        "999",
        "64KiB",
        "10MB",
        "1kB",
        "1025",
    ]
    assert [format_duration(n) for n in (0, 0.5, 90, 604_800.0, 0.0001)] == [
        "0",
        "500ms",
        "90s",
        "7d",
        "0.0001s",
    ]


# --- the sources ----------------------------------------------------------------------------------


def test_nothing_has_to_be_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    loaded = load([], {})
    settings = loaded.settings
    assert (settings.host, settings.port, settings.base_path) == ("127.0.0.1", 8080, "/files/")
    assert settings.upload_dir == tmp_path / "data"
    assert settings.state_dir == tmp_path / "data" / ".tusd-py"
    assert (settings.dir_perms, settings.file_perms) == (0o750, 0o640)
    assert (settings.expire_after, settings.tombstone_ttl) == (7 * 86400, 30 * 86400)
    assert settings.durability == "finish"
    assert set(loaded.origins.values()) == {"default"}
    assert loaded.warnings == ()


def test_the_command_line_wins_over_the_environment_and_that_over_the_file(tmp_path: Path) -> None:
    file = toml(tmp_path, 'host = "10.0.0.1"\nport = 1\nmax-size = "1MB"\n')
    loaded = load(["--config", file, "--port", "3"], {"TUSD_PORT": "2", "TUSD_MAX_SIZE": "2MB"})
    assert loaded.settings.host == "10.0.0.1"
    assert loaded.settings.port == 3
    assert loaded.settings.max_size == 2_000_000
    assert loaded.origins["host"] == f"file {file}"
    assert loaded.origins["port"] == "flag --port"
    assert loaded.origins["max_size"] == "environment TUSD_MAX_SIZE"
    assert loaded.origins["base_path"] == "default"


def test_a_value_that_another_source_overrides_is_not_checked(tmp_path: Path) -> None:
    file = toml(tmp_path, 'port = "none"')
    assert load(["--port=3"], {"TUSD_CONFIG": file}).settings.port == 3


def test_the_file_may_be_named_by_the_environment(tmp_path: Path) -> None:
    file = toml(tmp_path, "port = 81")
    assert load([], {"TUSD_CONFIG": file}).settings.port == 81


def test_the_file_of_the_command_line_is_read_instead_of_that_of_the_environment(
    tmp_path: Path,
) -> None:
    file = toml(tmp_path, "port = 81")
    assert load(["--config", file], {"TUSD_CONFIG": "/nowhere"}).settings.port == 81


@pytest.mark.parametrize("name", ["TUSD_REDIS_URL", "TUSD_HOOKS_HTTP_SECRET"])
def test_a_secret_may_be_in_a_file_that_the_environment_names(name: str, tmp_path: Path) -> None:
    secret = "redis://user:0123456789abcdef@127.0.0.1/0"
    file = tmp_path / "secret"
    file.write_text(secret + "\n")
    loaded = load([], {f"{name}_FILE": str(file)})
    setting = name.removeprefix("TUSD_").lower()
    assert getattr(loaded.settings, setting).get_secret_value() == secret
    assert loaded.origins[setting] == f"environment {name}_FILE"
    assert loaded.warnings == ()
    with pytest.raises(SettingsError, match=f"{name}_FILE and {name} are both set"):
        load([], {f"{name}_FILE": str(file), name: secret})
    file.write_text("")
    with pytest.raises(SettingsError, match="the file is empty"):
        load([], {f"{name}_FILE": str(file)})
    with pytest.raises(SettingsError, match="cannot be read: No such file"):
        load([], {f"{name}_FILE": str(tmp_path / "none")})
    file.write_text("short")
    with pytest.raises(SettingsError) as caught:
        load([], {f"{name}_FILE": str(file)})
    assert "short" not in str(caught.value)


@pytest.mark.parametrize("name", list(Settings.model_fields))
def test_every_setting_can_be_given_in_all_three_places(name: str, tmp_path: Path) -> None:
    existing = toml(tmp_path, "")
    samples = {
        "host": "::1",
        "unix_sock": str(tmp_path / "s"),
        "unix_sock_perms": "0600",
        "base_path": "/uploads/",
        "behind_proxy": "10.0.0.0/8,unix",
        "tls_certificate": existing,
        "tls_key": existing,
        "upload_dir": str(tmp_path),
        "state_dir": str(tmp_path / "state"),
        "dir_perms": "0700",
        "file_perms": "0600",
        "new_upload_dir": "accept",
        "durability": "chunk",
        "finished_dir": "/srv/finished/{filename}",
        "finished_files": "remove",
        "s3_endpoint": "http://127.0.0.1:9000",
        "pages": "off",
        "pages_token_url": "/token",
        "s3_path_style": "on",
        "s3_part_size": "16MiB",
        "s3_max_object_size": "1TiB",
        "s3_concurrent_part_uploads": "8",
        "s3_spool_size": "1GiB",
        "s3_spool_dir": str(tmp_path),
        "s3_sse": "aws:kms",
        "s3_tags": "team=imaging,kind=",
        "s3_public_endpoint": "https://objects.example.org",
        "cors_allow_origin": "https://a",
        "cors_allow_methods": "PUT, LOCK",
        "cors_allow_headers": "X-A",
        "cors_expose_headers": "X-B",
        "auth": "jwt",
        "jwt_secret": "0123456789abcdef0123456789abcdef",
        "jwt_secret_file": existing,
        "jwt_jwks": "https://example.org/jwks.json",
        "jwt_algorithms": "ES256",
        "upload_token_secret_file": existing,
        "duplicates": "off",
        "duplicate_scope": "server",
        "duplicates_when_unavailable": "refuse",
        "hooks": "a.b:c",
        "hooks_delivery": "server",
        "hooks_delivery_attempts": "20",
        "hooks_dir": str(tmp_path),
        "hooks_enabled_events": "post-finish",
        "hooks_http": "https://example.org/hooks",
        "hooks_http_retry": "20",
        "hooks_http_secret": "0123456789abcdef",
        "redis_url": "redis://localhost:6380/1",
        "workers": "4",
        "jobs": "off",
        "time_zone": "UTC",
        "tuspyserver_dirs": str(tmp_path),
        "admin": "127.0.0.1:8081",
        "admin_hosts": "ops.example.org",
        "admin_user_header": "X-User",
        "metrics_path": "/m",
        "log_format": "json",
        "log_level": "debug",
    }
    setting = next(each for each in catalogue(Settings) if each.name == name)
    bare = {"true": "false", "false": "true"}.get(setting.default, "2000")
    text = samples.get(name, bare)
    partners = {
        "tls_certificate": ["--tls-key", existing],
        "tls_key": ["--tls-certificate", existing],
        "cors_allow_credentials": ["--cors-allow-origin", "https://a"],
        "s3_endpoint": ["--s3-bucket", "uploads"],
        "s3_kms_key": ["--s3-sse", "aws:kms"],
        "admin_user_header": ["--behind-proxy", "10.0.0.1"],
        "s3_public_endpoint": ["--s3-presigned-downloads"],
    }
    rest = partners.get(name, [])

    file = tmp_path / "given.toml"
    file.write_text(f"{name} = {json.dumps(text)}", encoding="utf-8")
    sources = (
        load([setting.flag, text, *rest], {}),
        load(rest, {setting.environment: text}),
        load(["--config", str(file), *rest], {}),
    )
    for loaded, origin in zip(sources, ("flag", "environment", "file"), strict=True):
        assert loaded.origins[name].startswith(origin)
        assert setting.show(getattr(loaded.settings, name)) != setting.default
    assert len({each.settings for each in sources}) == 1


def test_toml_has_types_of_its_own(tmp_path: Path) -> None:
    file = toml(
        tmp_path,
        """
        network_timeout = 1.5
        expire_after = 60
        max_size = 1000
        disable_cors = true
        behind_proxy = ["10.0.0.0/8", "::1"]
        hooks = ["a:b", "c.d:e"]
        """,
    )
    settings = load(["--config", file], {}).settings
    assert (settings.network_timeout, settings.expire_after, settings.max_size) == (1.5, 60, 1000)
    assert settings.disable_cors
    assert settings.behind_proxy == ("10.0.0.0/8", "::1")
    assert settings.hooks == ("a:b", "c.d:e")


def test_a_flag_may_have_one_dash_as_with_tusd() -> None:
    settings = load(["-port=91", "-max-size", "5", "-disable-cors"], {}).settings
    assert (settings.port, settings.max_size, settings.disable_cors) == (91, 5, True)


@pytest.mark.parametrize(
    ("argv", "value"),
    [
        (["--disable-download"], True),
        (["--disable-download=true"], True),
        (["--disable-download", "--port=1"], True),
        (["--disable-download=false"], False),
        (["--disable-download=No"], False),
        ([], False),
    ],
)
def test_a_switch_may_be_given_with_or_without_a_value(argv: list[str], value: bool) -> None:
    assert load(argv, {}).settings.disable_download is value


def test_an_empty_variable_counts_as_not_set() -> None:
    loaded = load([], {"TUSD_PORT": "", "TUSD_UPLOAD_DIR": "", "TUSD_CONFIG": ""})
    assert loaded.settings.port == 8080
    assert loaded.origins["upload_dir"] == "default"


# --- what is odd ----------------------------------------------------------------------------------


def test_an_unknown_variable_is_a_warning_that_suggests_the_nearest() -> None:
    loaded = load([], {"TUSD_MAXSIZE": "1", "OTHER": "2"})
    assert loaded.warnings == (
        "TUSD_MAXSIZE is not a setting and is ignored; did you mean TUSD_MAX_SIZE?",
    )


def test_what_kubernetes_says_about_a_service_called_tusd_is_not_taken_for_settings() -> None:
    environ = {
        "TUSD_PORT": "tcp://10.0.0.7:80",
        "TUSD_PORT_80_TCP": "tcp://10.0.0.7:80",
        "TUSD_PORT_80_TCP_ADDR": "10.0.0.7",
        "TUSD_PORT_80_TCP_PORT": "80",
        "TUSD_PORT_80_TCP_PROTO": "tcp",
        "TUSD_SERVICE_HOST": "10.0.0.7",
        "TUSD_SERVICE_PORT": "80",
        "TUSD_SERVICE_PORT_HTTP": "80",
        "TUSD_REDIS_PORT": "tcp://10.0.0.8:6379",
        "TUSD_REDIS_SERVICE_HOST": "10.0.0.8",
    }
    loaded = load([], environ)
    assert loaded.settings.port == 8080
    assert loaded.origins["port"] == "default"
    [warning] = loaded.warnings
    assert warning.startswith('TUSD_PORT "tcp://10.0.0.7:80" is ignored')
    assert load(["--port", "90"], environ).settings.port == 90


# --- what is wrong --------------------------------------------------------------------------------


def test_a_mistake_names_the_flag_the_value_and_what_would_be_right() -> None:
    expected = "give a whole number from 0 to 65535"
    assert problem("--port", "80x") == f'--port "80x": {expected}'
    assert problem("--port=70000") == f'--port "70000": {expected}'
    assert problem(environ={"TUSD_PORT": "-1"}) == f'TUSD_PORT "-1": {expected}'


def test_a_mistake_in_the_file_names_file_and_key(tmp_path: Path) -> None:
    file = toml(tmp_path, 'port = true\n"max-size" = "10 parsecs"')
    first, second = problems("--config", file)
    assert first == f"{file}:port true: give a whole number from 0 to 65535"
    assert second.startswith(f'{file}:max-size "10 parsecs": give bytes')


def test_all_mistakes_are_told_at_once() -> None:
    assert len(problems("--port=x", "--host=a b", environ={"TUSD_MAX_SIZE": "-"})) == 3


def test_a_mistake_in_upload_dir_is_told_once() -> None:
    assert problem("--upload-dir", "") == '--upload-dir "": give a path'


def test_a_long_or_strange_value_is_told_short_and_harmless() -> None:
    told = problem("--port", "\x1b[31m\n\x7f" + "9" * 1000)
    assert told.isascii()
    assert told.isprintable()
    assert len(told) < 300


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["--prot", "1"], "unknown option --prot; did you mean --port?"),
        (["--max-siz=1"], "unknown option --max-siz; did you mean --max-size?"),
        (["--port"], "--port needs a value"),
        (["data"], 'unexpected argument "data"'),
    ],
)
def test_a_mistake_in_the_flags_themselves_is_told(argv: list[str], told: str) -> None:
    assert problem(*argv) == told


def test_an_unknown_key_in_the_file_is_an_error_that_suggests_the_nearest(tmp_path: Path) -> None:
    file = toml(tmp_path, 'max-sise = 3\nport = 80\n[network]\nhost = "a"')
    first, second = problems("--config", file)
    assert first == f"{file}:max-sise: unknown setting; did you mean max_size?"
    assert second.startswith(f"{file}:network: unknown setting")


def test_a_key_that_is_given_twice_is_an_error(tmp_path: Path) -> None:
    file = toml(tmp_path, "max_size = 1\nmax-size = 2")
    assert problem("--config", file) == f"{file}:max-size: given twice, as {file}:max_size too"


def test_permissions_in_the_file_stand_in_quotes(tmp_path: Path) -> None:
    file = toml(tmp_path, "dir_perms = 750")
    assert problem("--config", file) == f'{file}:dir_perms: give it in quotes, such as "0750"'


def test_a_file_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    assert problem("--config", "/nowhere.toml") == (
        '--config "/nowhere.toml": cannot be read: No such file or directory'
    )
    told = problem(environ={"TUSD_CONFIG": str(tmp_path)})
    assert told.startswith(f'TUSD_CONFIG "{tmp_path}": cannot be read')
    assert "is not TOML: " in problem("--config", toml(tmp_path, "x = = 1"))
    (tmp_path / "tusd.toml").write_bytes(b"\xff")
    assert "UTF-8" in problem("--config", str(tmp_path / "tusd.toml"))


@pytest.mark.parametrize(
    "argv",
    [
        ["--host", ""],
        ["--host", "1.2.3.4:80"],
        ["--host", "[::1]:80"],
        ["--host", "999.1.1.1"],
        ["--host", "-a"],
        ["--base-path", "files"],
        ["--base-path", "//files"],
        ["--base-path", "/a/../b"],
        ["--base-path", "/a?b"],
        ["--base-path", "/{a}/"],
        ["--base-path", "/healthz"],
        ["--behind-proxy=10.0.0.0/40"],
        ["--behind-proxy=proxy.example"],
        ["--tls-key", "/nowhere"],
        ["--unix-sock", "/tmp/" + "x" * 110],
        ["--dir-perms", "0640"],
        ["--dir-perms", "0778"],
        ["--file-perms", "rw-r--r--"],
        ["--durability", "always"],
        ["--max-connections", "0"],
        ["--max-header-size", "10"],
        ["--network-timeout", "0"],
        ["--disable-cors=perhaps"],
        ["--cors-allow-origin", "("],
        ["--cors-allow-headers", "X-A\r\nX-B: 1"],
        ["--cors-allow-methods", "GET;POST"],
        ["--cors-max-age", "1d"],
        ["--hook", "nothing"],
        ["--hook", "a b:c"],
        ["--metrics-path", "metrics"],
        ["--log-level", "loud"],
    ],
)
def test_what_cannot_be_is_refused_and_named(argv: list[str]) -> None:
    told = problem(*argv)
    assert told.startswith(argv[0].split("=")[0] + " ")


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["--unix-sock=/s", "--port=0"], '--unix-sock "/s" and --port "0" exclude each other'),
        (["--tls-key={file}"], '--tls-key "{file}" needs --tls-certificate too'),
        (["--tls-certificate={file}"], '--tls-certificate "{file}" needs --tls-key too'),
        (["--base-path=/metrics"], '--metrics-path "/metrics" must be outside --base-path'),
        (["--metrics-path=/files/x"], '--metrics-path "/files/x" must be outside --base-path'),
        (["--metrics-path=/healthz"], '--metrics-path "/healthz" must be outside --base-path'),
        (["--upload-dir=/a", "--state-dir=/a/"], '--state-dir "/a/" and --upload-dir "/a" must'),
    ],
)
def test_what_does_not_fit_together_is_named(argv: list[str], told: str, tmp_path: Path) -> None:
    file = toml(tmp_path, "")
    given_argv = [argument.format(file=file) for argument in argv]
    assert problem(*given_argv).startswith(told.format(file=file))


@pytest.mark.parametrize(
    "origins",
    [
        [],
        ["--cors-allow-origin=.*"],
        ["--cors-allow-origin=^.+$"],
        ["--cors-allow-origin=(.*)"],
        ["--cors-allow-origin=https?://.*"],
        ["--cors-allow-origin=http://.*"],
        ["--cors-allow-origin=https://[^/]+"],
        ["--cors-allow-origin=https://app.example.org|.*"],
        ["--cors-allow-origin=[\\s\\S]*"],
        ["--cors-allow-origin=https://.*:8443"],
    ],
)
def test_credentials_are_not_for_pages_of_any_origin(origins: list[str]) -> None:
    told = problem("--cors-allow-credentials", *origins)
    assert told.startswith('--cors-allow-credentials "true" with --cors-allow-origin ')
    assert r"--cors-allow-origin 'https://app\.example\.org'" in told
    assert load(["--cors-allow-credentials", "--disable-cors", *origins], {}).settings.disable_cors
    assert not load(origins, {}).settings.cors_allow_credentials


@pytest.mark.parametrize(
    "pattern",
    [
        r"https://app\.example\.org",
        r"https://([a-z]+\.)?example\.org(:\d+)?",
        r"http://localhost(:\d+)?",
        "null",
    ],
)
def test_credentials_are_for_pages_of_origins_that_are_named(pattern: str) -> None:
    argv = ["--cors-allow-credentials", f"--cors-allow-origin={pattern}"]
    assert load(argv, {}).settings.cors_allow_credentials


@pytest.mark.parametrize(
    "pattern",
    [
        r"https?://([a-z]+\.?)*example\.org",
        r"(.*)*x",
        r"https://((a|a)*)\.org",
        r"https://([a-z0-9-]*\.?)*\.example\.org",
        r"(([a-z.-])+)+\.example\.org",
    ],
)
def test_an_expression_that_strangers_could_stop_the_server_with_is_refused(pattern: str) -> None:
    told = problem(f"--cors-allow-origin={pattern}")
    assert "twice as long with each character" in told


@pytest.mark.parametrize(
    "pattern",
    [
        r"https?://([a-z0-9-]+\.)*example\.org(:[0-9]+)?",
        ".*",
        r"https://(a|b)\.org",
        r"(https://.*)?",
    ],
)
def test_ordinary_expressions_are_taken(pattern: str) -> None:
    assert load([f"--cors-allow-origin={pattern}"], {}).settings.cors_allow_origin == pattern


def test_a_byte_order_mark_is_no_part_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "tusd.toml"
    file.write_bytes(b"\xef\xbb\xbfport = 81\r\n")
    assert load(["--config", str(file)], {}).settings.port == 81


def test_a_conflict_names_each_setting_where_it_was_given(tmp_path: Path) -> None:
    file = toml(tmp_path, 'unix_sock = "/s"')
    told = problem("--config", file, environ={"TUSD_PORT": "80"})
    assert told.startswith(f'{file}:unix_sock "/s" and TUSD_PORT "80" exclude each other')


# --- what values become ---------------------------------------------------------------------------


def test_paths_become_absolute_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/someone")
    (tmp_path / "cert.pem").touch()
    argv = ["--upload-dir=u", "--state-dir=~/s", "--unix-sock=x/../sock", "--hook=h.py,h/b.py:Hook"]
    settings = load([*argv, "--tls-key=cert.pem", "--tls-certificate=cert.pem"], {}).settings
    monkeypatch.chdir("/")
    assert settings.upload_dir == tmp_path / "u"
    assert settings.state_dir == Path("/home/someone/s")
    assert settings.unix_sock == tmp_path / "sock"
    assert settings.tls_key == tmp_path / "cert.pem"
    assert settings.hooks == (f"{tmp_path}/h.py", f"{tmp_path}/h/b.py:Hook")


@pytest.mark.parametrize(
    ("argv", "proxies"),
    [
        ([], ()),
        (["--behind-proxy"], PRIVATE_NETWORKS),
        (["--behind-proxy=true"], PRIVATE_NETWORKS),
        (["--behind-proxy=false"], ()),
        (["--behind-proxy", "10.1.2.3, 192.168.7.1/24"], ("10.1.2.3", "192.168.7.0/24")),
        (["--behind-proxy=unix", "--behind-proxy=*"], ("unix", "*")),
        (["--behind-proxy=private,2001:DB8::1"], (*PRIVATE_NETWORKS, "2001:db8::1")),
    ],
)
def test_proxies_are_a_list_of_addresses_and_networks(
    argv: list[str], proxies: tuple[str, ...]
) -> None:
    assert load(argv, {}).settings.behind_proxy == proxies


def test_hooks_may_be_repeated_and_listed() -> None:
    argv = ["--hook", "a:b", "--hook", "c.d:e,f:g"]
    assert load(argv, {}).settings.hooks == ("a:b", "c.d:e", "f:g")


@pytest.mark.parametrize(
    ("given_path", "path"), [("/files", "/files/"), ("/a/b/", "/a/b/"), ("/", "/")]
)
def test_the_base_path_ends_with_a_slash(given_path: str, path: str) -> None:
    assert load(["--base-path", given_path], {}).settings.base_path == path


def test_hosts_may_be_names_and_addresses() -> None:
    hosts = ["0.0.0.0", "::", "[::1]", "localhost", "uploads.example.org"]
    assert [load(["--host", host], {}).settings.host for host in hosts] == [
        "0.0.0.0",
        "::",
        "::1",
        "localhost",
        "uploads.example.org",
    ]


def test_settings_can_be_made_in_python_and_not_changed(tmp_path: Path) -> None:
    settings = Settings(upload_dir=tmp_path, port=0, max_size=5, dir_perms=0o700)
    assert settings.state_dir == tmp_path / ".tusd-py"
    assert Settings.model_validate(settings.model_dump(exclude_unset=True)) == settings
    with pytest.raises(ValidationError):
        settings.port = 1  # type: ignore[misc]
    with pytest.raises(ValidationError):
        Settings(network_timeout=-1)


def test_child_processes_have_the_settings_of_the_server(tmp_path: Path) -> None:
    settings = Settings(
        upload_dir=tmp_path,
        max_size="10GB",
        network_timeout=0.5,
        dir_perms="0700",
        disable_cors=True,
        behind_proxy=True,
        cors_allow_headers=["X-A", "X-B"],
        durability="chunk",
        hooks_enabled_events="post-finish",
        hooks_http="https://user:password@example.org/hooks",
        jwt_secret="with, comma " * 3,
        redis_url="redis://:word@localhost:1/2",
    )
    assert load_from(environment(settings)).settings == settings


# --- secrets --------------------------------------------------------------------------------------


class WithSecret(Settings, frozen=True):
    """Settings with a secret."""

    secret: SecretStr | None = declare(None, "Something that nobody shall see.")


def with_secret(environ: Mapping[str, str] | None = None, config: str | None = None) -> Loaded:
    return load_from(environ or {}, config=config, model=WithSecret)


def test_a_secret_is_read_and_shown_nowhere() -> None:
    loaded = with_secret(environ={"TUSD_SECRET": "hunter2"})
    assert isinstance(loaded.settings, WithSecret)
    assert loaded.settings.secret is not None
    assert loaded.settings.secret.get_secret_value() == "hunter2"
    for shown in (config.as_rows(loaded), config.as_document(loaded), loaded):
        assert "hunter2" not in repr(shown)
    assert config.as_document(loaded)["secret"] == {
        "value": HIDDEN,
        "origin": "environment TUSD_SECRET",
    }


def test_a_secret_that_is_not_set_shows_as_such() -> None:
    assert config.as_document(with_secret())["secret"] == {"value": None, "origin": "default"}


def test_a_wrong_secret_is_not_told(tmp_path: Path) -> None:
    file = toml(tmp_path, "secret = [12345678]")
    with pytest.raises(SettingsError) as caught:
        with_secret(config=file)
    assert caught.value.problems[0].startswith(f"{file}:secret {HIDDEN}: ")
    assert "12345678" not in str(caught.value)


# --- the documentation ----------------------------------------------------------------------------


def test_every_setting_is_described_and_has_a_group() -> None:
    for setting in catalogue(Settings):
        assert setting.description.endswith("."), setting.name
        assert setting.group != "Other", setting.name


def test_settings_have_the_names_that_tusd_gives_them() -> None:
    same = """host port unix-sock base-path behind-proxy max-size disable-download
        disable-termination disable-concatenation disable-cors cors-allow-origin
        cors-allow-credentials cors-allow-methods cors-allow-headers cors-expose-headers
        cors-max-age upload-dir dir-perms file-perms hooks-dir hooks-http
        hooks-http-forward-headers hooks-http-retry hooks-http-backoff hooks-http-timeout
        hooks-http-size-limit hooks-enabled-events progress-hooks-interval expose-metrics
        metrics-path network-timeout shutdown-timeout acquire-lock-timeout log-format
        tls-certificate tls-key"""
    assert {f"--{name}" for name in same.split()} <= {each.flag for each in catalogue(Settings)}


def test_the_page_of_settings_is_what_the_model_says() -> None:
    page = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    assert page == markdown(catalogue(Settings)), (
        "run: tusd-py config --markdown > docs/settings.md"
    )


def test_the_file_that_the_page_shows_can_be_used(tmp_path: Path) -> None:
    page = markdown(catalogue(Settings))
    example = page.split("```toml\n")[1].split("```")[0]
    loaded = load(["--config", toml(tmp_path, example)], {})
    given_names = {name for name, origin in loaded.origins.items() if origin != "default"}
    assert given_names == set(tomllib.loads(example))
