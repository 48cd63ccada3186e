"""Results as Markdown: a table for each scenario, medians with their spread and ratios to tusd and to the bare copy loop."""

from __future__ import annotations

from bench.results import Measurement, Results, Spread, ratio
from bench.scenarios import IN_BUCKET, SCENARIOS, Scenario

BASELINE = "tusd"
BASELINE_IN_BUCKET = "tusd-s3"
FLOOR = "floor"
NOISE = 0.15
"""Share of a processor. Above it, whatever else ran on the machine is said to have disturbed."""
_CLIENT_LIMIT = 0.95

RATE_UNITS = {"bytes": "MB/s", "uploads": "uploads/s", "requests": "requests/s"}
CPU_UNITS = {
    "bytes": "CPU s/GB",
    "uploads": "CPU ms each",
    "requests": "CPU ms each",
    "connections": "% of a CPU",
}


def by_name(name: str) -> Scenario:
    """The scenario of this name."""
    return next(scenario for scenario in SCENARIOS if scenario.name == name)


def rate_of(measurement: Measurement) -> float:
    return measurement.rate


def cpu_of(measurement: Measurement) -> float:
    return measurement.cpu


def number(value: float) -> str:
    """Three significant digits, and no fraction from 100 on."""
    if value >= 100:
        return f"{value:,.0f}"
    if value >= 10:
        return f"{value:.1f}"
    return f"{value:.2f}" if value >= 0.1 else f"{value:.3f}"


def render(results: Results) -> str:
    """All tables, and what was left out."""
    sections = [_table(results, by_name(name)) for name in results.scenarios]
    notes = [f"- {name}: {reason}" for name, reason in results.left_out.items()]
    if notes:
        sections.append("\n".join(["Left out:", "", *notes]))
    return "\n\n".join(sections) + "\n"


def _table(results: Results, scenario: Scenario) -> str:
    lines = [f"### {scenario.title} (`{scenario.name}`)", ""]
    servers = results.servers_of(scenario.name)
    if servers:
        rows = [_heading(scenario), *(_row(results, scenario, name) for name in servers)]
        lines += _aligned(rows)
    remarks = [
        f"{results.titles[name]}: {reason}"
        for name in results.titles
        if (reason := results.failure(name, scenario.name))
    ]
    remarks += _disturbances(results, scenario)
    if remarks:
        lines += ["", *(f"- {remark}" for remark in remarks)]
    return "\n".join(lines)


def _heading(scenario: Scenario) -> list[str]:
    cpu = CPU_UNITS[scenario.counts]
    if scenario.counts == "connections":
        return ["server", "KiB each", "spread", cpu, "spread", "x tusd", "peak MB"]
    cpus = [cpu, "spread", "x tusd", "x floor"]
    rates = [RATE_UNITS[scenario.counts], "spread", "x tusd"]
    requests = ["S3 requests"] if scenario.group == IN_BUCKET else []
    return ["server", *rates, *cpus, "p50 ms", "p99 ms", "peak MB", *requests]


def _row(results: Results, scenario: Scenario, name: str) -> list[str]:
    found = results.of(name, scenario.name)
    cpu = Spread.of(map(cpu_of, found))
    peak = Spread.of(measurement.peak_memory / 1e6 for measurement in found)
    baseline = BASELINE_IN_BUCKET if scenario.group == IN_BUCKET else BASELINE
    cpus = [number(cpu.median), _range(cpu), _ratio(results, scenario, name, baseline, cpu=True)]
    memory = number(peak.median) if peak.median else ""
    if scenario.counts == "connections":
        each = Spread.of(measurement.memory_each / 1024 for measurement in found)
        return [results.titles[name], number(each.median), _range(each), *cpus, memory]
    rate = Spread.of(map(rate_of, found))
    latencies = [
        Spread.of(measurement.p50 for measurement in found).median,
        Spread.of(measurement.p99 for measurement in found).median,
    ]
    return [
        results.titles[name],
        number(rate.median),
        _range(rate),
        _ratio(results, scenario, name, baseline, cpu=False),
        *cpus,
        _ratio(results, scenario, name, FLOOR, cpu=True),
        *(number(latency) if latency else "" for latency in latencies),
        memory,
        *_requests(scenario, found),
    ]


def _requests(scenario: Scenario, found: list[Measurement]) -> list[str]:
    if scenario.group != IN_BUCKET:
        return []
    return [number(Spread.of(measurement.requests_each for measurement in found).median)]


def _range(spread: Spread) -> str:
    return f"{number(spread.low)}-{number(spread.high)}"


def _ratio(results: Results, scenario: Scenario, name: str, to: str, *, cpu: bool) -> str:
    found = ratio(results, scenario.name, (name, to), cpu_of if cpu else rate_of)
    return "" if found is None else f"{found:.2f}"


def _aligned(rows: list[list[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for at, row in enumerate(rows):
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append(f"| {' | '.join(cells)} |")
        if at == 0:
            rules = ["-" * widths[0], *(f"{'-' * (width - 1)}:" for width in widths[1:])]
            lines.append(f"| {' | '.join(rules)} |")
    return lines


def _disturbances(results: Results, scenario: Scenario) -> list[str]:
    """What a reader has to know to trust a figure, or not."""
    remarks = []
    for name in results.servers_of(scenario.name):
        found = results.of(name, scenario.name)
        others = [measurement.others_share for measurement in found]
        disturbed = sum(share > NOISE for share in others)
        if disturbed:
            remarks.append(
                f"{results.titles[name]}: something else used up to {max(others):.0%} of a processor"
                f" in {disturbed} of {len(found)} rounds"
            )
        busiest = Spread.of(measurement.client_share for measurement in found).median
        if busiest > _CLIENT_LIMIT:
            remarks.append(
                f"{results.titles[name]}: the load generator was busy {busiest:.0%} of the time,"
                " so the server's pace may be higher (its CPU figure holds)"
            )
    return remarks
