"""Parsed contents of Dockerfile and the compose files, for tests that check them and run them without a container engine."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from tests.support.server import ROOT

DOCKERFILE = ROOT / "Dockerfile"
COMPOSE = ROOT / "docker-compose.yml"
COMPOSE_S3 = ROOT / "docker-compose.s3.yml"
PROXY = ROOT / "docker" / "nginx.conf"

Service = Mapping[str, Any]
_VARIABLE = re.compile(r"\$\{(\w+):-([^}]*)\}")


@cache
def compose(file: Path = COMPOSE) -> Mapping[str, Any]:
    """The whole file, with what it repeats filled in and its variables at their defaults."""
    text = _VARIABLE.sub(r"\2", file.read_text())
    document: Mapping[str, Any] = YAML(typ="safe").load(text)
    return document


def services(file: Path = COMPOSE) -> Mapping[str, Service]:
    found: Mapping[str, Service] = compose(file)["services"]
    return found


@cache
def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's instructions, continued lines joined."""
    lines = [line for line in DOCKERFILE.read_text().splitlines() if not line.startswith("#")]
    text = "\n".join(lines).replace("\\\n", " ")
    return [
        (word, rest.strip())
        for word, _, rest in (line.partition(" ") for line in text.split("\n") if line)
    ]


def last_stage() -> list[tuple[str, str]]:
    """The instructions that the image itself is made by."""
    found = instructions()
    begin = max(index for index, (word, _) in enumerate(found) if word == "FROM")
    return found[begin:]


def image_environment() -> dict[str, str]:
    """The variables that the image sets, but the path of its programs."""
    pairs = [pair for word, rest in last_stage() if word == "ENV" for pair in shlex.split(rest)]
    found = dict(pair.split("=", 1) for pair in pairs)
    assert found.pop("PATH").startswith("/opt/tusd-py/bin:")
    return found


def copied() -> list[str]:
    """The files and directories of the checkout that are copied for the build."""
    found: list[str] = []
    for word, rest in instructions():
        if word == "COPY" and not rest.startswith("--from"):
            found += rest.split()[:-1]
    return found


def environment_of(name: str, file: Path = COMPOSE) -> dict[str, str]:
    """The environment of a service of ours as its container has it."""
    given = {key: str(value) for key, value in services(file)[name]["environment"].items()}
    return {**image_environment(), **given}


def outer_environment() -> dict[str, str]:
    """The environment of processes that replace containers, without a developer's settings."""
    return {key: value for key, value in os.environ.items() if not key.startswith("TUSD_")}
