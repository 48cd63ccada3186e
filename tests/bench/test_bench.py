"""The benchmark works: it measures, reports failures, and computes correctly. Not for the figures themselves."""

from __future__ import annotations

import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from bench import plot, report
from bench.results import Measurement, Results, Spread
from bench.scenarios import IN_BUCKET, SCENARIOS, chosen
from tests.support.server import environment

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 280
"""Seconds for a benchmark that is begun; it takes a tenth of that, and much longer beside other programs."""

pytestmark = pytest.mark.timeout(LIMIT + 20)


def bench(tmp_path: Path, *arguments: str) -> tuple[Results, subprocess.CompletedProcess[str]]:
    """A quick run, with everything below tmp_path."""
    command = [sys.executable, "-m", "bench", "--quick", "--rounds", "1", "--pin", "none"]
    done = subprocess.run(
        [*command, "--work", str(tmp_path), *arguments],
        cwd=ROOT,
        env={**environment(), "PATH": "/nowhere"},
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return Results.from_json((tmp_path / "results" / "results.json").read_text()), done


def test_every_scenario_gives_figures_with_the_bare_loop(tmp_path: Path) -> None:
    scenarios = [
        f"--scenario={one.name}"
        for one in SCENARIOS
        if one.known < 10_000 and one.group != IN_BUCKET
    ]
    results, done = bench(tmp_path, "--server=floor", "--server=sha256", *scenarios)
    assert [found.failure for found in results.measurements if found.failure] == []
    assert results.servers_of("checksum-1m") == ["floor", "sha256"]
    assert all(found.units and found.cpu for found in results.measurements)
    assert "### One upload of 512 MiB" in done.stdout
    ET.parse(tmp_path / "results" / "plot.svg")
    assert not (tmp_path / "uploads").exists()
    assert not (tmp_path / "known").exists()


def test_this_server_is_measured_and_a_missing_peer_is_named(tmp_path: Path) -> None:
    which = [f"--server={name}" for name in ("tusd-py", "tusd-py-ietf", "tusd", "rustus")]
    scenarios = ["chunks-1m", "small-at-once", "many-patch-10", "download-range"]
    results, done = bench(tmp_path, *which, *(f"--scenario={name}" for name in scenarios))
    assert [found.failure for found in results.measurements if found.failure] == []
    assert [results.servers_of(name) for name in scenarios] == [
        ["tusd-py", "tusd-py-ietf"],
        ["tusd-py", "tusd-py-ietf"],
        ["tusd-py"],
        ["tusd-py"],
    ]
    assert "TUSD_BIN" in results.left_out["tusd"]
    assert "cargo install rustus" in results.left_out["rustus"]
    assert "Left out:" in done.stdout


def test_uploads_in_a_bucket_are_measured_and_their_requests_are_counted(tmp_path: Path) -> None:
    scenarios = ["s3-small", "s3-small-at-once"]
    results, done = bench(
        tmp_path,
        *("--server=tusd-py-s3-none", "--server=tusd-s3", "--server=floor"),
        *(f"--scenario={name}" for name in scenarios),
    )
    assert {found.scenario: found.failure for found in results.measurements} == dict.fromkeys(
        scenarios, ""
    )
    assert "TUSD_BIN" in results.left_out["tusd-s3"]
    assert all(2 <= found.requests_each < 2.5 for found in results.measurements)
    assert "S3 requests" in done.stdout


def test_a_name_that_is_unknown_is_refused(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bench", "--scenario=none-such", "--work", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    assert done.returncode == 2
    assert "there is no scenario none-such" in done.stderr


def some_results() -> Results:
    """Two servers, three rounds."""
    results = Results("2026-01-01", {}, {}, {"ours": "ours", "tusd": "tusd"}, scenarios=["large"])
    for at, (mine, theirs) in enumerate([(1000.0, 400.0), (2000.0, 1000.0), (900.0, 600.0)]):
        for name, rate in (("ours", mine), ("tusd", theirs)):
            found = Measurement(name, "large", at + 1, rate=rate, cpu=1000 / rate, units=1)
            results.measurements.append(found)
    return results


def test_the_table_shows_medians_spread_and_the_ratio_to_tusd() -> None:
    ours = next(line for line in report.render(some_results()).splitlines() if "ours" in line)
    cells = [cell.strip() for cell in ours.strip("|").split("|")]
    assert cells[:7] == ["ours", "1,000", "900-2,000", "1.67", "1.00", "0.50-1.11", "0.60"]


def test_disturbed_rounds_and_a_busy_client_are_said() -> None:
    results = some_results()
    results.measurements[0].others_share = 0.5
    for found in results.measurements:
        found.client_share = 0.99
    text = report.render(results)
    assert "something else used up to 50% of a processor in 1 of 3 rounds" in text
    assert "the load generator was busy 99%" in text


def test_results_survive_their_file_and_can_be_joined() -> None:
    results = Results.from_json(some_results().to_json())
    assert results == some_results()
    other = some_results()
    other.scenarios = ["large", "small"]
    other.measurements.append(Measurement("ours", "small", 1, rate=1.0, cpu=1.0))
    results.join(other)
    assert results.scenarios == ["large", "small"]
    assert len(results.measurements) == 7


def test_the_plot_is_an_svg_with_every_server() -> None:
    root = ET.fromstring(plot.render(some_results()))
    texts = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"ours", "tusd", "1,000"} <= set(texts)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["large"], {"large", "large-4"}),
        (["many-head-1m", "slow"], {"many-head-1m", "slow"}),
    ],
)
def test_scenarios_are_chosen_by_name_or_group(names: list[str], expected: set[str]) -> None:
    assert {scenario.name for scenario in chosen(names, million=False)} == expected


def test_a_million_uploads_are_for_those_who_ask() -> None:
    usual = {scenario.name for scenario in chosen([], million=False)}
    assert {one.name for one in chosen([], million=True)} - usual == {
        "many-head-1m",
        "many-head-1m-wide",
        "many-patch-1m",
        "many-patch-1m-wide",
    }


def test_a_spread_is_the_median_between_the_extremes() -> None:
    assert Spread.of([3.0, 1.0, 2.0]) == Spread(2.0, 1.0, 3.0)


def test_sweeps_are_measured(tmp_path: Path) -> None:
    few = ["--uploads", "200", "--known", "1000", "--work", str(tmp_path / "work")]
    done = subprocess.run(
        [sys.executable, "-m", "bench.sweep", *few],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("200 abandoned, locks in") == 2
    assert "1,000 known, 1,000 due" in done.stdout
    assert not (tmp_path / "work").exists()
