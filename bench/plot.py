"""Results as a picture: bars for throughput and CPU of every server, one row a scenario; the whisker is the spread.

SVG that is written here, so that the benchmark needs no drawing library and the picture can be compared line by line.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from html import escape

from bench.report import CPU_UNITS, RATE_UNITS, by_name, cpu_of, number, rate_of
from bench.results import Measurement, Results, Spread
from bench.scenarios import Scenario

_WIDTH, _PANEL, _NAMES, _GAP = 960, 330, 170, 60
_BAR, _STEP, _TITLE, _BOTTOM = 13, 18, 40, 14
_OURS, _PEER, _FLOOR, _TEXT, _FAINT = "#2b6cb0", "#a0aec0", "#e2c48d", "#1a202c", "#4a5568"


@dataclass(frozen=True, slots=True)
class _Panel:
    x: float
    heading: str
    figure: Callable[[Measurement], float]


def render(results: Results) -> str:
    """The whole SVG document."""
    parts: list[str] = []
    y = 20.0
    for name in results.scenarios:
        servers = results.servers_of(name)
        if servers:
            parts += _scenario(results, by_name(name), servers, y)
            y += _TITLE + len(servers) * _STEP + _BOTTOM
    style = (
        f'width="{_WIDTH}" height="{y:.0f}" font-family="sans-serif" font-size="11" fill="{_TEXT}"'
    )
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {y:.0f}" {style}>',
            f'<rect width="{_WIDTH}" height="{y:.0f}" fill="#ffffff"/>',
            *parts,
            "</svg>\n",
        ]
    )


def _scenario(results: Results, scenario: Scenario, servers: list[str], top: float) -> list[str]:
    parts = [_text(10, top, scenario.title, 'font-size="13" font-weight="bold"')]
    for at, name in enumerate(servers):
        y = top + _TITLE + at * _STEP
        parts.append(_text(_NAMES - 8, y, results.titles[name], 'text-anchor="end"'))
    for panel in _panels(scenario):
        parts += _bars(results, scenario, servers, panel, top)
    return parts


def _panels(scenario: Scenario) -> list[_Panel]:
    second = _NAMES + _PANEL + _GAP
    cpu = _Panel(second, f"{CPU_UNITS[scenario.counts]} (less is better)", cpu_of)
    if scenario.counts == "connections":
        return [_Panel(_NAMES, "KiB each (less is better)", lambda m: m.memory_each / 1024), cpu]
    return [_Panel(_NAMES, f"{RATE_UNITS[scenario.counts]} (more is better)", rate_of), cpu]


def _bars(
    results: Results, scenario: Scenario, servers: list[str], panel: _Panel, top: float
) -> list[str]:
    spreads = {
        name: Spread.of(map(panel.figure, results.of(name, scenario.name))) for name in servers
    }
    scale = (_PANEL - 60) / (max(spread.high for spread in spreads.values()) or 1.0)
    parts = [_text(panel.x, top + 17, panel.heading, f'fill="{_FAINT}"')]
    for at, name in enumerate(servers):
        spread = spreads[name]
        y = top + _TITLE + at * _STEP - _BAR + 3
        parts.append(
            f'<rect x="{panel.x}" y="{y:.1f}" width="{spread.median * scale:.1f}" height="{_BAR}"'
            f' fill="{_colour(name)}"/>'
        )
        low, high, middle = (
            panel.x + spread.low * scale,
            panel.x + spread.high * scale,
            y + _BAR / 2,
        )
        parts.append(
            f'<path d="M{low:.1f} {middle:.1f}H{high:.1f}" stroke="{_TEXT}" stroke-width="1"/>'
        )
        parts.append(_text(high + 5, y + _BAR - 3, number(spread.median), ""))
    return parts


def _colour(name: str) -> str:
    if name in ("floor", "sha256"):
        return _FLOOR
    return _OURS if name.startswith("tusd-py") else _PEER


def _text(x: float, y: float, text: str, attributes: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" {attributes}>{escape(text)}</text>'
