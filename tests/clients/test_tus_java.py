"""tus-java-client, in the program of docs/phones.md: with tokens that expire on the way, and lost connections."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import pytest

from tests.auth.people import SECRET, access, bearer
from tests.clients.conftest import MakeSource
from tests.clients.content import MIB
from tests.conftest import MakeServer
from tests.docs.blocks import blocks
from tests.frontend.pages import Site
from tests.support.faults import FaultProxy, Plan, Way
from tests.support.requirements import require_program
from tests.support.tus import Tus, path_of

ARTIFACT = "io.tus.java.client:tus-java-client:0.5.1"


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The command that runs it."""
    for name, package in (("javac", "default-jdk"), ("java", "default-jdk"), ("mvn", "maven")):
        require_program(name, package)
    directory = tmp_path_factory.mktemp("java")
    (directory / "Upload.java").write_text(blocks("docs/phones.md", "java")[0])
    jars = f"-DoutputDirectory={directory}"
    run(directory, "mvn", "-q", "-B", "dependency:copy", f"-Dartifact={ARTIFACT}", jars)
    [jar] = directory.glob("*.jar")
    run(directory, "javac", "-cp", str(jar), "Upload.java")
    return ["java", "-cp", f"{jar}:{directory}", "Upload"]


def run(directory: Path, *command: str) -> str:
    done = subprocess.run(
        command, cwd=directory, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_java_client_goes_on_with_fresh_tokens(
    program: list[str], make_server: MakeServer, make_source: MakeSource, tmp_path: Path
) -> None:
    """Every connection is lost after 1.5 MiB, and each token makes void those before it."""
    server = make_server("--auth", "jwt", "--jwt-leeway", "0", env={"TUSD_JWT_SECRET": SECRET})
    source = make_source(4 * MIB)
    tus = Tus(server)
    given: list[str] = []

    def token() -> str:
        if given:
            # The client waits for its next token, so it shows no other one meanwhile: a 401 is final for it.
            admin, owner = bearer(access("root", "uploads:admin")), b'{"owner": "alice"}'
            assert tus.request("POST", "/auth/revoke", admin, owner).status == 204
        # Revocations count microseconds.
        given.append(access(iat=time.time()))
        return given[-1]

    cut = Plan(up=Way(cut_after=3 * MIB // 2, cut="rst"))
    with FaultProxy(server.address, default=cut) as proxy, Site(tmp_path) as site:
        site.answers["/token"] = token
        url = run(tmp_path, *program, proxy.url(), f"{site.url}/token", str(source.path)).strip()
        connections = len(proxy.links)
    assert connections > 2
    assert tus.head(path_of(url), bearer(given[0])).status == 401
    assert tus.stored(path_of(url)) == source.path.read_bytes()
    assert len(tus.data_files()) == 1
