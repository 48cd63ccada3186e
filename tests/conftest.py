"""Fixtures that give tests a server process; its log is shown with every test that fails."""

from __future__ import annotations

import gc
import signal
from collections.abc import Callable, Generator, Iterator, Mapping
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.support import server as servers
from tests.support.server import ServerProcess
from tests.support.tus import Tus

LOG_LINES_SHOWN = 100
LONG = ("crash", "delivery", "compat", "frontend", "pages", "workers", "containers", "durability")
"""Directories whose modules take longest; begun with first, so that no process is left alone with them at the end."""

# A shell ignores SIGINT for what it starts in the background, and the processes that tests start would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# How long an example takes says nothing on a machine that does other things meanwhile.
settings.register_profile("tests", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tests")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """One server with default settings for all tests of a module. Do not stop it."""
    with ServerProcess(tmp_path_factory.mktemp("server") / "uploads") as process:
        yield process


@pytest.fixture
def tus(server: ServerProcess) -> Tus:
    """A client of the module's server."""
    return Tus(server)


MakeServer = Callable[..., ServerProcess]


@pytest.fixture
def make_server(tmp_path: Path) -> Iterator[MakeServer]:
    """``make_server(*flags, env=…, upload_dir=…)``: a started server of the test's own.

    Without ``upload_dir`` each has a new directory. All end with the test. ``launch=True`` starts
    the process and does not wait for it to listen (for servers that shall not start).
    """
    mine: list[ServerProcess] = []

    def make(
        *flags: str,
        env: Mapping[str, str] | None = None,
        upload_dir: Path | None = None,
        port: int = 0,
        prefix: tuple[str, ...] = (),
        launch: bool = False,
    ) -> ServerProcess:
        directory = upload_dir or tmp_path / f"uploads-{len(mine)}"
        process = ServerProcess(directory, *flags, env=env, port=port, prefix=prefix)
        mine.append(process)
        return process.launch() if launch else process.start()

    yield make
    for process in mine:
        process.close()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    root = Path(__file__).parent
    order = {name: number for number, name in enumerate(LONG)}
    items.sort(key=lambda item: order.get(item.path.relative_to(root).parts[0], len(LONG)))


def pytest_collection_finish() -> None:
    # Thousands of tests would be looked through at each collection of garbage.
    gc.collect()
    gc.freeze()


def pytest_runtest_setup(item: pytest.Item) -> None:
    servers.started[:] = [process for process in servers.started if process.running]
    for process in servers.started:
        process.mark_lines()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed:
        for process in servers.started:
            lines = process.lines_since_mark()[-LOG_LINES_SHOWN:]
            report.sections.append((f"log of {process.url or process.flags}", "\n".join(lines)))
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Shows what tests recorded with ``record_property``; what workers print is lost."""
    for reports in terminalreporter.stats.values():
        for report in reports:
            if isinstance(report, pytest.TestReport) and report.when == "call":
                for name, value in report.user_properties:
                    terminalreporter.write_line(f"{name}: {value}")
