"""`python -m bench`: measures this server beside others; see bench/README.md."""

from __future__ import annotations

import argparse
import os
import platform
import shlex
import shutil
import signal
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

from bench import plot, processes, report
from bench.buckets import in_buckets
from bench.measure import Place, measure
from bench.memory import Pool
from bench.results import Measurement, Results
from bench.scenarios import GIB, IN_BUCKET, Scenario, chosen
from bench.servers import ROOT, Ours, Server, Unavailable, known

_SETTLED = 1.0
"""Load average below which a round begins at once."""
_CALM_LIMIT = 10.0
_ATTEMPTS = 3
_DISTURBED = 0.3
"""Processors that everything else may use meanwhile; above it something is measured again."""


def main() -> int:
    """Returns the exit code: 0 if anything was measured."""
    arguments = _parser().parse_args()
    if arguments.render:
        results = Results.from_json(arguments.render[0].read_text())
        for path in arguments.render[1:]:
            results.join(Results.from_json(path.read_text()))
        _write(results, arguments.out or arguments.render[0].parent)
        print(report.render(results))
        return 0
    try:
        scenarios = chosen(arguments.scenario, million=arguments.million)
        servers = _servers(arguments.server, arguments.variant)
    except ValueError as problem:
        print(f"bench: {problem}", file=sys.stderr)
        return 2
    # To be asked to stop is to be interrupted, also where a shell has set that to be ignored: nothing may be left running.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    out = arguments.out or arguments.work / "results"
    arguments.work.mkdir(parents=True, exist_ok=True)
    results = Results(
        began=datetime.now(UTC).isoformat(timespec="seconds"),
        machine=_machine(),
        options={"rounds": str(arguments.rounds), "quick": str(arguments.quick)},
        scenarios=[scenario.name for scenario in scenarios],
    )
    _warn_of_file_system(arguments.work)
    present = _prepare(servers, arguments.work, results)
    server_cpus, client_cpus = _processors(arguments.pin)
    results.options["server processors"] = str(sorted(server_cpus))
    results.options["client processors"] = str(sorted(client_cpus))
    size = 0 if arguments.quick else int(arguments.pool * GIB)
    with Pool(size, cpus=client_cpus, say=_say) as pool:
        place = Place(
            arguments.work, server_cpus, client_cpus, pool, 0.0 if arguments.quick else _CALM_LIMIT
        )
        try:
            for round_number in range(1, arguments.rounds + 1):
                results.loads.append(_settle(0.0 if arguments.quick else arguments.settle))
                _round(round_number, place, present, scenarios, results, quick=arguments.quick)
        except KeyboardInterrupt:
            _say("stopped: what was measured so far is kept")
        finally:
            _write(results, out)
            place.seeds.close()
            shutil.rmtree(arguments.work / "uploads", ignore_errors=True)
    print(report.render(results))
    print(f"Written to {out}: results.json, tables.md, plot.svg")
    return 0 if any(not found.failure for found in results.measurements) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description="Measure upload servers side by side on this machine. TUSD_BIN and RUSTUS_BIN are paths of "
        "binaries, TUSD_PY_BEFORE that of the Python of another installation of tusd-py.",
    )
    add = parser.add_argument
    add(
        "--scenario",
        action="append",
        default=[],
        metavar="NAME",
        help="a scenario or a group of them; repeatable",
    )
    add("--server", action="append", default=[], metavar="NAME", help="a server; repeatable")
    add(
        "--variant",
        action="append",
        default=[],
        metavar="NAME:FLAGS",
        help="also measure this server with other flags, as tusd-py-NAME",
    )
    add("--rounds", type=int, default=5, help="how often everything is measured (5)")
    add(
        "--quick",
        action="store_true",
        help="a moment each, to see that it works: the figures mean nothing",
    )
    add(
        "--million",
        action="store_true",
        help="also with 1,000,000 known uploads: several GB and minutes a server",
    )
    add("--out", type=Path, metavar="DIR", help="where results go (WORK/results)")
    add(
        "--work",
        type=Path,
        metavar="DIR",
        default=ROOT / "build" / "bench",
        help="where uploads and peers are kept",
    )
    add(
        "--settle",
        type=float,
        default=60.0,
        metavar="SECONDS",
        help="how long to wait for the machine to calm down before a round (60)",
    )
    add(
        "--pool",
        type=float,
        default=4.0,
        metavar="GIB",
        help="memory that is kept warm for servers (4); 0 holds none",
    )
    add(
        "--pin",
        choices=["both", "client", "none"],
        default="both",
        help="which processes get processors of their own (both)",
    )
    add(
        "--render",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="measure nothing: tables and plot of earlier results, joined",
    )
    return parser


def _servers(names: list[str], variants: list[str]) -> list[Server]:
    servers = [*known(), *in_buckets()]
    for variant in variants:
        name, _, flags = variant.partition(":")
        servers.insert(2, Ours(f"tusd-py-{name}", f"tusd-py, {name}", *shlex.split(flags)))
    by_name = {server.name: server for server in servers}
    for name in names:
        if name not in by_name:
            raise ValueError(f"there is no server {name}; there are {', '.join(by_name)}")
    return [server for server in servers if not names or server.name in names]


def _prepare(servers: list[Server], work: Path, results: Results) -> list[Server]:
    present = []
    for server in servers:
        try:
            version = server.prepare(work)
        except Unavailable as problem:
            results.left_out[server.name] = str(problem)
            _say(f"{server.name} is left out: {problem}")
        else:
            results.titles[server.name] = server.title
            results.versions[server.name] = version
            present.append(server)
            _say(f"{server.name}: {version}")
    return present


def _processors(pin: str) -> tuple[set[int], set[int]]:
    """For servers and for the load generator: with two or more, the last is the load generator's alone."""
    every = os.sched_getaffinity(0)
    if pin == "none" or len(every) < 2:
        return every, every
    client = {max(every)}
    return (every - client if pin == "both" else every), client


def _round(
    number: int,
    place: Place,
    servers: list[Server],
    scenarios: list[Scenario],
    results: Results,
    *,
    quick: bool,
) -> None:
    """Every scenario, and in it one server after the other; another begins each time."""
    first = (number - 1) % max(1, len(servers))
    for scenario in scenarios:
        for server in [*servers[first:], *servers[:first]]:
            if scenario.group not in (server.only or (scenario.group,)):
                continue
            if scenario.group == IN_BUCKET and IN_BUCKET not in server.only:
                continue
            found = _measure_undisturbed(place, server, scenario, quick=quick)
            found.round = number
            results.measurements.append(found)
            _say(f"round {number}: {_line(scenario, found)}")


def _measure_undisturbed(
    place: Place, server: Server, scenario: Scenario, *, quick: bool
) -> Measurement:
    """Once more if something else took part of the machine; the attempt that was disturbed least counts."""
    found = measure(place, server, scenario, quick=quick)
    for _ in range(0 if quick else _ATTEMPTS - 1):
        if found.failure or found.others_share <= _DISTURBED:
            break
        again = measure(place, server, scenario, quick=quick)
        if not again.failure and again.others_share < found.others_share:
            found = again
    return found


def _line(scenario: Scenario, found: Measurement) -> str:
    start = f"{found.scenario:14} {found.server:16}"
    if found.failure:
        return f"{start} no figures: {found.failure}"
    rate = (
        ""
        if not found.rate
        else f"{report.number(found.rate)} {report.RATE_UNITS[scenario.counts]}, "
    )
    if scenario.counts == "connections":
        rate = f"{report.number(found.memory_each / 1024)} KiB each, "
    cpu = f"{report.number(found.cpu)} {report.CPU_UNITS[scenario.counts]}"
    noise = f", others {found.others_share:.2f}" if found.others_share > report.NOISE else ""
    return f"{start} {rate}{cpu}, client {found.client_share:.2f}{noise}"


def _settle(limit: float) -> float:
    """Waits for up to `limit` seconds until the machine is calm; returns the load average then."""
    deadline = time.monotonic() + limit
    while (load := processes.load_average()) > _SETTLED and time.monotonic() < deadline:
        time.sleep(1)
    return load


def _machine() -> dict[str, str]:
    cpu = "?"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            cpu = line.partition(":")[2].strip()
            break
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "processors": f"{os.cpu_count()}, {cpu}",
        "memory": f"{memory / 1e9:.0f} GB",
        "kernel": platform.release(),
        "python": platform.python_version(),
    }


def _warn_of_file_system(work: Path) -> None:
    """Without a journal, ext4 passes over every inode that was deleted within the last half minute when it makes a file: a
    benchmark, which deletes what it made, would measure that.
    """
    device = work.stat().st_dev
    link = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}")
    task = Path("/sys/fs/ext4") / link.resolve().name / "journal_task"
    if task.exists() and "none" in task.read_text():
        _say(
            f"WARNING: {work} is on ext4 without a journal; the figures of small uploads say little there (see --work)"
        )


def _write(results: Results, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    (out / "results.json").write_text(results.to_json())
    (out / "tables.md").write_text(report.render(results))
    (out / "plot.svg").write_text(plot.render(results))


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
