"""Messages about tokens at startup, and the commands of operators for tokens."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.auth.people import SECRET, access, bearer, upload_token
from tests.conftest import MakeServer
from tests.support import commands
from tests.support.server import ServerProcess, environment
from tests.support.tus import Tus, id_of, path_of
from tests.support.waiting import wait_until
from tests.unit.test_cli import ROOT, run

JWT = ("--auth", "jwt")


def inspected(token: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """The output of `token inspect` for a token on standard input."""
    return subprocess.run(
        [sys.executable, "-m", "tusd_py", "token", "inspect"],
        input=token,
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        timeout=60,
        env=environment(environ),
    )


@pytest.mark.parametrize(
    ("flags", "secret", "said"),
    [
        (JWT, "", "; none is given"),
        ((), SECRET, "add --auth jwt"),
        ((*JWT, "--jwt-jwks", "https://example.org/k"), SECRET, "2 are given"),
        ((*JWT, "--jwt-algorithms", "RS256"), SECRET, "RS256 does not go with --jwt-secret"),
        ((*JWT, "--jwt-algorithms", "none"), SECRET, "--jwt-algorithms"),
        (JWT, "short", "at least 32"),
        ((*JWT, "--scope-read", "uploads:admin"), SECRET, "are the same"),
    ],
)
def test_what_does_not_fit_together_is_refused(
    make_server: MakeServer, flags: tuple[str, ...], secret: str, said: str
) -> None:
    env = {"TUSD_JWT_SECRET": secret} if secret else {}
    server = make_server(*flags, env=env, launch=True)
    assert server.wait() == 2
    assert said in server.log()
    assert not secret or secret not in server.log()


def test_a_weak_secret_in_a_file_is_refused(make_server: MakeServer, tmp_path: Path) -> None:
    file = tmp_path / "secrets"
    file.write_text("# ours\nold tooshort\n")
    server = make_server(*JWT, "--jwt-secret-file", str(file), launch=True)
    assert server.wait() == 2
    assert "--jwt-secret-file, line 2: the secret has 8 bytes" in server.log()
    assert "tooshort" not in server.log()


def test_without_tokens_nothing_changes_and_strangers_are_warned_of(tmp_path: Path) -> None:
    for host, warned in (("127.0.0.1", False), ("0.0.0.0", True)):
        server = ServerProcess(tmp_path / host / "uploads", host=host)
        server.upload_dir.parent.mkdir()
        with server:
            assert ("--auth jwt" in server.log()) == warned
            client = Tus(server)
            response = client.create(5, headers=bearer("whatever"))
            assert response.status == 201
            assert "Upload-Token" not in response
            assert client.request("POST", "/auth/revoke").status == 404


def test_a_server_of_several_processes_asks_for_tokens(make_server: MakeServer) -> None:
    server = make_server(*JWT, "--workers", "2", env={"TUSD_JWT_SECRET": SECRET})
    tus = Tus(server)
    path = tus.new(5, headers=bearer(access()))
    token = bearer(upload_token(id_of(path)))
    body = json.dumps({"upload_id": id_of(path)}).encode()
    assert tus.request("POST", "/auth/revoke", bearer(access()), body).status == 204
    wait_until(lambda: all(tus.head(path, token).status == 401 for _ in range(8)), "all to know")


def test_commands_make_tokens_that_a_server_takes(make_server: MakeServer) -> None:
    made = run("keys", "new", "--kid", "2026")
    kid, secret = made.stdout.split()
    assert (made.returncode, kid, len(secret) >= 43) == (0, "2026", True)
    server = make_server(*JWT, env={"TUSD_JWT_SECRET": secret})
    issue = (
        "token",
        "issue",
        "--owner",
        "alice",
        "--scope",
        "create,admin",
        "--upload-size",
        "1kB",
        "--total-size",
        "1500",
    )
    token = run(*issue, TUSD_JWT_SECRET=secret).stdout.strip()
    tus = Tus(server)
    created = tus.create(5, headers=bearer(token))
    assert created.status == 201
    assert tus.create(1001, headers=bearer(token)).status == 413
    assert tus.create(900, headers=bearer(token)).status == 201
    assert tus.create(900, headers=bearer(token)).code == "ERR_QUOTA_EXCEEDED"
    described = json.loads(inspected(token, TUSD_JWT_SECRET=secret).stdout)
    assert (described["valid"], described["quota_bytes"]) == (True, 1500)

    for text, code, owner in (
        (token, 0, "alice"),
        (created["Upload-Token"], 0, "alice"),
        (f"{token[:-4]}AAAA", 1, None),
        ("nonsense", 1, None),
    ):
        done = inspected(text, TUSD_JWT_SECRET=secret)
        assert done.returncode == code, done
        assert json.loads(done.stdout).get("owner") == owner

    directory = ("--upload-dir", str(server.upload_dir))
    env = {"TUSD_JWT_SECRET": secret}
    upload_id = id_of(path_of(created["Location"]))
    for name, code in ((upload_id, 0), ("nosuch", 1)):
        done = commands.run("token", "revoke", "--upload", name, *directory, env=env)
        assert (done.returncode, done.stdout) == (code, f"revoked upload {name}\n")
        assert ("nosuch is not an upload here" in done.stderr) == bool(code)
    revoke = ("token", "revoke", "--owner", "alice", *directory)
    done = commands.run(*revoke, env=env)
    assert (done.returncode, done.stdout) == (0, "revoked what alice was issued until now\n")
    wait_until(lambda: tus.create(5, headers=bearer(token)).status == 401, "it to be void")


@pytest.mark.parametrize(
    "arguments",
    [
        ("keys",),
        ("token",),
        ("token", "isue"),
        ("token", "revoke"),
        ("keys", "new", "--kid", "a b"),
    ],
)
def test_a_command_that_is_not_whole_is_a_mistake(arguments: tuple[str, ...]) -> None:
    done = run(*arguments, TUSD_JWT_SECRET=SECRET)
    assert (done.returncode, done.stdout) == (2, "")
