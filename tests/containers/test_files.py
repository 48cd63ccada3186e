"""Dockerfile and docker-compose.yml: checks that need no container engine."""

from __future__ import annotations

import fnmatch
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.containers.described import (
    COMPOSE,
    COMPOSE_S3,
    DOCKERFILE,
    compose,
    copied,
    environment_of,
    last_stage,
    services,
)
from tests.support.server import ROOT
from tusd_py.cli.app import COMMANDS
from tusd_py.settings.load import load

OURS = ("server", "worker", "scheduler")
FILES = (COMPOSE, COMPOSE_S3)
EACH = [
    (file, name)
    for file in FILES
    for name, service in services(file).items()
    if "extends" not in service
]


def tool(name: str) -> str:
    """A program of the environment in which the tests run."""
    return str(Path(sys.executable).parent / name)


@pytest.mark.parametrize("file", FILES)
def test_the_compose_file_is_one(file: Path) -> None:
    schema = ["--builtin-schema", "vendor.compose-spec"]
    done = subprocess.run(
        [tool("check-jsonschema"), *schema, str(file)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def test_the_linter_has_nothing_to_say_about_the_dockerfile() -> None:
    done = subprocess.run(
        [tool("hadolint"), str(DOCKERFILE)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(("file", "name"), EACH)
def test_each_service_is_confined_and_looked_after(file: Path, name: str) -> None:
    service = services(file)[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["restart"] == "unless-stopped"
    assert service["healthcheck"]["test"][0] == "CMD"
    # Only the proxy can be reached from outside; Grafana from this machine.
    assert ("ports" in service) == (name in ("proxy", "grafana"))
    assert name != "grafana" or service["ports"] == ["127.0.0.1:3000:3000"]
    assert service.get("profiles", []) == (["metrics"] if name in ("prometheus", "grafana") else [])
    for volume in service.get("volumes", ()):
        source = volume.split(":")[0]
        assert source in compose(file)["volumes"] or (ROOT / source).is_file()
    assert set(service["networks"]) <= set(compose(file)["networks"])


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("name", OURS)
def test_our_services_are_our_commands_with_settings_that_exist(name: str, file: Path) -> None:
    service = services(file)[name]
    assert service["command"][0] in COMMANDS
    assert service["healthcheck"]["test"][1:3] == ["tusd-py", "health"]
    assert service["healthcheck"]["test"][3] == service["command"][0]
    environment = environment_of(name, file)
    if file == COMPOSE_S3:
        # A directory of the container, which this machine need not have.
        assert environment.pop("TUSD_S3_SPOOL_DIR") == "/data"
    settings = load(environment).settings
    assert settings.s3_bucket == ("uploads" if file == COMPOSE_S3 else "")
    assert (settings.host, settings.port) == ("0.0.0.0", 8080)
    assert settings.upload_dir == Path("/data")
    assert settings.redis_url is not None


@pytest.mark.parametrize("file", FILES)
def test_there_are_two_servers_and_they_have_time_to_end(file: Path) -> None:
    server = services(file)["server"]
    assert server["deploy"]["replicas"] == 2
    shutdown = load(environment_of("server")).settings.shutdown_timeout
    assert int(server["stop_grace_period"].removesuffix("s")) > shutdown


def test_the_image_is_not_run_by_root_and_has_its_data_apart() -> None:
    found = dict(last_stage())
    assert found["USER"] == "10001:10001"
    assert found["VOLUME"] == "/data"
    assert found["ENTRYPOINT"] == '["tusd-py"]'
    assert found["CMD"] == '["serve"]'


def test_what_is_copied_is_let_through_and_nothing_else() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    through = {line[1:] for line in lines if line.startswith("!")}
    assert lines[1] == "*"
    assert through == set(copied())
    assert all((ROOT / name).exists() for name in through)
    again = [line for line in lines if line.startswith("**")]
    assert any(
        fnmatch.fnmatch("tusd_py/__pycache__/x.pyc", line.removeprefix("**/")) for line in again
    )


def test_what_is_copied_makes_a_wheel(tmp_path: Path) -> None:
    source = tmp_path / "build"
    source.mkdir()
    hidden = shutil.ignore_patterns("__pycache__", "*.pyc")
    for name in copied():
        target = source / name
        target.parent.mkdir(exist_ok=True)
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, target, ignore=hidden)
        else:
            shutil.copy(ROOT / name, target)
    flags = ["--no-deps", "--no-build-isolation", "--disable-pip-version-check", "--no-index"]
    done = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", *flags, "--wheel-dir", str(tmp_path), str(source)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    [wheel] = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    for package in ("tusd_py/cli/health.py", "tusd_hooks/duplicates.py", "tusd_workers/worker.py"):
        assert package in names
    for path in ("man/man1/tusd-py.1", "bash-completion/completions/tusd-py"):
        assert any(name.endswith(f".data/data/share/{path}") for name in names), path


def test_both_compose_files_say_the_same_of_what_both_have() -> None:
    """But for where uploads are."""
    files, objects = compose(COMPOSE), compose(COMPOSE_S3)
    assert objects["networks"] == files["networks"]
    assert set(objects["services"]) == {*files["services"], "objects"}
    assert set(files["volumes"]) - {"uploads"} == set(objects["volumes"]) - {"objects"}
    for name, service in files["services"].items():
        other = objects["services"][name]
        if "extends" in other:
            assert other == {"extends": {"file": COMPOSE.name, "service": name}}
            continue
        differs = {"environment", "depends_on", "volumes"} if name in OURS else set()
        assert {key: value for key, value in other.items() if key not in differs} == {
            key: value for key, value in service.items() if key not in differs
        }
        if name in OURS:
            assert "volumes" not in other
            assert service["environment"].items() <= other["environment"].items()
