"""The units of deploy/systemd, as far as they can be checked without a running systemd."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.requirements import require_program
from tests.support.server import ROOT
from tusd_py.cli.app import COMMANDS
from tusd_py.settings.load import load

UNITS = sorted((ROOT / "deploy" / "systemd").glob("*.service"))
PROGRAM = "/opt/tusd-py/bin/tusd-py"
MOST_EXPOSED = 1.5
"""Of 10, in the words of `systemd-analyze security`: below 2 is OK."""


@pytest.fixture(scope="module")
def analyze() -> str:
    return require_program("systemd-analyze", "systemd")


@pytest.fixture
def installed(tmp_path: Path) -> Callable[[Path], Path]:
    """A copy of a unit whose program exists."""

    def copy(unit: Path) -> Path:
        text = unit.read_text()
        assert f"\nExecStart={PROGRAM} " in text
        program = Path(sys.executable).with_name("tusd-py")
        made = tmp_path / unit.name
        made.write_text(text.replace(PROGRAM, str(program)))
        return made

    return copy


def values(unit: Path, key: str) -> list[str]:
    return re.findall(rf"^{key}=(.*)$", unit.read_text(), re.MULTILINE)


def test_there_is_one_for_each_long_running_command() -> None:
    commands = [value.split()[1] for unit in UNITS for value in values(unit, "ExecStart")]
    assert sorted(commands) == ["scheduler", "serve", "worker"]
    assert set(commands) <= set(COMMANDS)


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_systemd_has_nothing_to_say(
    unit: Path, analyze: str, installed: Callable[[Path], Path]
) -> None:
    done = subprocess.run(
        [analyze, "verify", "--man=no", str(installed(unit))],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    # Of other units that these come after it may have.
    said = [line for line in (done.stdout + done.stderr).splitlines() if unit.name in line]
    assert said == []
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_it_may_do_little(unit: Path, analyze: str) -> None:
    done = subprocess.run(
        [analyze, "security", "--offline=true", "--no-pager", str(unit)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    found = re.search(r"exposure level for \S+: ([0-9.]+)", done.stdout)
    assert found, done.stdout + done.stderr
    assert float(found[1]) <= MOST_EXPOSED


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_its_settings_exist_and_it_has_time_to_end(unit: Path) -> None:
    [pair] = values(unit, "Environment")
    name, _, directory = pair.partition("=")
    settings = load({name: directory}).settings
    assert settings.upload_dir == Path("/var/lib") / values(unit, "StateDirectory")[0]
    [patience] = values(unit, "TimeoutStopSec")
    assert int(patience.removesuffix("s")) > settings.shutdown_timeout
