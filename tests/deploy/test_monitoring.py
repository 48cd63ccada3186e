"""Prometheus' rules and Grafana's dashboard: well-formed, and about numbers that the server has."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import promql_parser
import pytest
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard
from ruamel.yaml import YAML

from tests.support.requirements import require_program
from tests.support.server import ROOT
from tusd_py.protocol import errors
from tusd_py.redis import RedisClient
from tusd_py.storage.file.store import FileStore
from tusd_py.telemetry.disk import DiskMetrics
from tusd_py.telemetry.jobs import JobsMetrics
from tusd_py.telemetry.object_store import ObjectStoreCounters
from tusd_py.telemetry.prometheus import Metrics

PROMETHEUS = ROOT / "deploy" / "prometheus"
RULES = PROMETHEUS / "rules.yml"
DASHBOARD = ROOT / "deploy" / "grafana" / "tusd-py.json"
TESTS = Path(__file__).with_name("rules.test.yml")

_NAME = re.compile(r"\b(?:tusd|process)_\w+")
_CODES = re.compile(r'\bcode=~?"([^"]*)"')


def alerts() -> list[Mapping[str, Any]]:
    [group] = YAML(typ="safe").load(RULES)["groups"]
    rules: list[Mapping[str, Any]] = group["rules"]
    return rules


def dashboard() -> dict[str, Any]:
    document: dict[str, Any] = json.loads(DASHBOARD.read_text())
    return document


def expressions() -> Iterator[str]:
    """Every expression, those of the dashboard with values for what Grafana fills in."""
    for rule in alerts():
        yield rule["expr"]
    for panel in dashboard()["panels"]:
        for target in panel.get("targets", ()):
            yield target["expr"].replace("$__rate_interval", "1m")


@pytest.fixture
async def exposed(tmp_path: Path) -> set[str]:
    """The names of all time series that servers expose, with every kind of store and a Redis."""
    metrics = Metrics()
    metrics.counters.object_store = ObjectStoreCounters(lambda: 0, 0)
    metrics.jobs = JobsMetrics(RedisClient("redis://127.0.0.1:1", timeout=1.0), None, speaks=True)
    metrics.disk = DiskMetrics(FileStore(tmp_path), 0)
    await metrics.disk.read()
    page = metrics.render(None)[0].decode()
    found: set[str] = set()
    for name, kind in re.findall(r"^# TYPE (\w+) (\w+)$", page, re.MULTILINE):
        ends = ("_bucket", "_count", "_sum") if kind == "histogram" else ("",)
        found |= {name + end for end in ends}
    return found


def test_every_expression_is_promql_about_metrics_that_exist(exposed: set[str]) -> None:
    asked = list(expressions())
    for expression in asked:
        promql_parser.parse(expression)
    names = {name for expression in asked for name in _NAME.findall(expression)}
    assert len(names) > 40
    assert names <= exposed


def test_every_code_is_one_of_the_server() -> None:
    known = {code for _, code in errors.rows()}
    asked = [
        code
        for each in expressions()
        for found in _CODES.findall(each)
        for code in found.split("|")
    ]
    assert set(asked) <= known
    assert asked


def test_alerts_tell_what_happened() -> None:
    names = [rule["alert"] for rule in alerts()]
    assert len(names) == len(set(names))
    for rule in alerts():
        assert rule["labels"]["severity"] in ("critical", "warning"), rule["alert"]
        assert rule["annotations"]["summary"]


def test_the_dashboard_is_one_of_grafana() -> None:
    """What Grafana's own model of a dashboard does not know, it would drop."""
    document = dashboard()
    read = Dashboard.from_json(document)
    again = json.loads(JSONEncoder(sort_keys=True).encode(read))
    assert differences(document, again) == []
    ids = [panel["id"] for panel in document["panels"]]
    assert len(ids) == len(set(ids))


def differences(given: Any, read: Any, path: str = "") -> list[str]:
    """Paths of what is in `given` and not the same in `read`."""
    if isinstance(given, dict) and isinstance(read, dict):
        return [
            found
            for key, value in given.items()
            for found in differences(value, read.get(key), f"{path}/{key}")
        ]
    if isinstance(given, list) and isinstance(read, list) and len(given) == len(read):
        pairs = enumerate(zip(given, read, strict=True))
        return [
            found for at, (one, two) in pairs for found in differences(one, two, f"{path}/{at}")
        ]
    return [] if given == read else [path]


def test_alerts_come_when_they_should(tmp_path: Path) -> None:
    promtool = require_program("promtool", "prometheus")
    copy = tmp_path / TESTS.name
    copy.write_text(TESTS.read_text().replace("RULES", str(RULES)))
    for command in (
        ["check", "config", str(PROMETHEUS / "prometheus.yml")],
        ["test", "rules", str(copy)],
    ):
        done = subprocess.run(
            [promtool, *command], capture_output=True, text=True, check=False, timeout=60
        )
        assert done.returncode == 0, done.stdout + done.stderr
