"""Log lines: readable text or one JSON object each, on standard error.

An entry is one line of printable ASCII, whatever a client put into a field, so that entries cannot be forged and terminals not
controlled; only tracebacks have further lines, which are indented. Writing never raises, and waits only briefly for a reader
that does not read, so that a stalled log does not stall uploads. The events of one turn of an event loop are written together,
as a write wakes the reader, which costs more than a line; a process that is killed loses those of that turn.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import select
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping
from functools import lru_cache
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Self, TextIO, TypeAlias

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop

VALUE_LIMIT = 256
"""Characters of one field's value that are kept."""
MESSAGE_LIMIT = 4096
"""Characters of a message, or of one line of a traceback, that are kept."""
TRACEBACK_LIMIT = 32_768
"""Characters of a traceback that are kept, from its end."""

recent: deque[tuple[float, str, str]] = deque(maxlen=200)
"""The last warnings and errors of this process, for operators: time, level, line."""

ExcInfo: TypeAlias = (
    tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]
)

_RESERVED = frozenset(("time", "level", "event", "logger", "exception"))
_LEVELS = {"INFO": "INFO ", "WARNING": "WARN ", "CRITICAL": "FATAL"}
"""Levels whose name has not five letters, as the text format shows them."""
_is_plain = re.compile(r"[!#-<>-\[\]-~]+").fullmatch
"""Match printable ASCII without space, quote, equals sign, backslash, which need quoting."""


def event(
    logger: logging.Logger,
    level: int,
    name: str,
    /,
    *,
    message: str | None = None,
    exc_info: BaseException | bool | None = None,
    **fields: object,
) -> None:
    """Log an event with its name and fields.

    Faster than `logger.log`, as the calling line of code is not determined.

    Args:
        logger: The logger of the calling module.
        level: As of `logging`.
        name: The event's name, stable for programs.
        message: A sentence in place of name and fields in the text format.
        exc_info: An exception, or True for the one that is being handled.
        fields: Left out if None.
    """
    if not logger.isEnabledFor(level):
        return
    only = None if exc_info is not None else _only_handler(logger)
    if message is not None:
        fields["message"] = message
    if only is not None:
        only.write_event(level, name, fields)
        return
    record = logger.makeRecord(
        logger.name, level, "", 0, EventText(name, fields), (), _exc_info(exc_info)
    )
    record.fields = fields
    logger.handle(record)


def _only_handler(logger: logging.Logger) -> StderrHandler | None:
    """Our handler if it is the only one for `logger`, so that no LogRecord is needed; else None."""
    handlers = logging.root.handlers
    if len(handlers) == 1 and not logger.handlers and not logger.filters and logger.propagate:
        handler = handlers[0]
        return handler if isinstance(handler, StderrHandler) else None
    return None


def _exc_info(given: BaseException | bool | None) -> ExcInfo | None:
    if isinstance(given, BaseException):
        return type(given), given, given.__traceback__
    return sys.exc_info() if given else None


# --- format ---------------------------------------------------------------------------------------


class EventText(str):
    """The message of an event's LogRecord: its name, which handlers of other applications write with all of its fields."""

    __slots__ = ("fields",)
    fields: Mapping[str, object]

    def __new__(cls, name: str, fields: Mapping[str, object]) -> Self:
        text = super().__new__(cls, name)
        text.fields = fields
        return text

    @property
    def name(self) -> str:
        return self[:]

    def __str__(self) -> str:
        return _text_of(self.name, self.fields)


def _text_of(name: str, fields: Mapping[str, object]) -> str:
    if "message" in fields:
        return _printable(str(fields["message"]))
    pairs: list[str] = []
    for key, value in fields.items():
        if value is None:
            continue
        if isinstance(value, str) and len(value) <= VALUE_LIMIT and _is_plain(value):
            text = value
        else:
            text = str(value) if type(value) is int else _text_value(value)
        pairs.append(f"{_text_key(key)}={text}")
    return f"{_printable(name)}  {' '.join(pairs)}".rstrip()


class _Formatter(logging.Formatter):
    """Common to both formats: the time in UTC, and tracebacks."""

    def __init__(self) -> None:
        super().__init__()
        self._second = (-1, "")

    def format_event(self, when: float, level: str, name: str, fields: Mapping[str, object]) -> str:
        """The line of an event. when: seconds since the epoch."""
        raise NotImplementedError

    def _time(self, when: float) -> str:
        second = int(when)
        known, text = self._second
        if second != known:
            text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
            self._second = (second, text)
        return f"{text}.{int((when - second) * 1000):03d}Z"

    def _traceback(self, record: logging.LogRecord) -> str:
        """The traceback and the stack of a record, "" if it has none; not yet safe to print."""
        parts = []
        if record.exc_info and record.exc_info[0] is not None:
            parts.append(self.formatException(record.exc_info))
        if record.stack_info:
            parts.append(record.stack_info)
        text = "\n".join(parts)
        return text if len(text) <= TRACEBACK_LIMIT else f"...{text[-TRACEBACK_LIMIT:]}"


class TextFormatter(_Formatter):
    """`2026-11-22T19:43:01.123Z INFO  request  method=PATCH status=204`"""

    def format(self, record: logging.LogRecord) -> str:
        found = _event_of(record)
        body = found or f"{_printable(record.name)}  {_printable(record.getMessage())}"
        line = self._line(record.created, record.levelname, str(body))
        if record.exc_info or record.stack_info:
            # Indented, so that nothing in an exception's text can look like a line of its own.
            block = self._traceback(record).splitlines()
            line = "\n".join([line, *(f"    {_printable(each)}" for each in block)])
        return line

    def format_event(self, when: float, level: str, name: str, fields: Mapping[str, object]) -> str:
        return self._line(when, level, _text_of(name, fields))

    def _line(self, when: float, level: str, body: str) -> str:
        return f"{self._time(when)} {_LEVELS.get(level, level)} {body}"


class JSONFormatter(_Formatter):
    """`{"time": "2026-11-22T19:43:01.123Z", "level": "info", "event": "request", "status": 204}`"""

    def format(self, record: logging.LogRecord) -> str:
        found = _event_of(record)
        if found is None:
            entry: dict[str, str | int | float] = {
                "time": self._time(record.created),
                "level": record.levelname.lower(),
                "event": "log",
                "logger": record.name,
                "message": _cut(record.getMessage(), MESSAGE_LIMIT),
            }
        else:
            entry = self._entry(record.created, record.levelname, found.name, found.fields)
        if record.exc_info or record.stack_info:
            entry["exception"] = self._traceback(record)
        return _encode(entry)

    def format_event(self, when: float, level: str, name: str, fields: Mapping[str, object]) -> str:
        return _encode(self._entry(when, level, name, fields))

    def _entry(
        self, when: float, level: str, name: str, fields: Mapping[str, object]
    ) -> dict[str, str | int | float]:
        entry: dict[str, str | int | float] = {
            "time": self._time(when),
            "level": level.lower(),
            "event": name,
        }
        for key, value in fields.items():
            if key == "message":
                entry[key] = _cut(str(value), MESSAGE_LIMIT)
            elif value is not None:
                entry[f"{key}_" if key in _RESERVED else key] = _json_value(value)
        return entry


def _event_of(record: logging.LogRecord) -> EventText | None:
    """The event of a record; None for an ordinary log message."""
    message: object = record.msg
    if isinstance(message, EventText):
        return message
    fields: object = record.__dict__.get("fields")
    return EventText(record.getMessage(), fields) if isinstance(fields, dict) else None


def _text_value(value: object) -> str:
    if isinstance(value, str):
        return value if len(value) <= VALUE_LIMIT and _is_plain(value) else _encode(_cut(value))
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(int(value))
    if isinstance(value, float):
        return f"{value:.6f}".rstrip("0").rstrip(".")
    return _text_value(_as_text(value))


@lru_cache(maxsize=256)
def _text_key(key: str) -> str:
    return _text_value(key)


def _json_value(value: object) -> str | int | float:
    if isinstance(value, str):
        return value if len(value) <= VALUE_LIMIT else _cut(value)
    if isinstance(value, int):
        return value
    if isinstance(value, float):
        # JSON has no infinity.
        return round(value, 6) if math.isfinite(value) else str(value)
    return _cut(_as_text(value))


def _as_text(value: object) -> str:
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value)


def _cut(text: str, limit: int = VALUE_LIMIT) -> str:
    return text if len(text) <= limit else f"{text[:limit]}...({len(text)} characters)"


def _printable(text: str) -> str:
    """The text in printable ASCII, other characters as Python escapes."""
    text = _cut(text, MESSAGE_LIMIT)
    if text.isascii() and text.isprintable():
        return text
    return text.encode("unicode_escape").decode("ascii")


_encode = json.JSONEncoder().encode
"""JSON in printable ASCII."""


# --- writing --------------------------------------------------------------------------------------


class StderrHandler(logging.Handler):
    """Writes lines to standard error. Lines that cannot be written are dropped; their number is logged with the next one."""

    _WAIT = 50
    """Milliseconds to wait, once, for a reader that does not read (full pipe, stopped terminal)."""
    _CHUNK = 4096
    """Bytes that a pipe which is ready takes without blocking (Linux: PIPE_BUF)."""

    def __init__(self, format: _Formatter) -> None:
        super().__init__()
        self.setFormatter(format)
        self._format = format
        self._stream = sys.stderr
        self._poll = _poll_of(self._stream)
        self._stuck = False
        self._torn = False
        self._dropped = 0
        self._waiting: list[str] = []
        self._writes_soon: AbstractEventLoop | None = None

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record; never raises."""
        try:
            line = self.format(record)
        except Exception as error:  # noqa: BLE001
            # A field whose text cannot be made, a message whose arguments do not fit: no reason to fail a request.
            line = self._format_plain("a log entry could not be written", error=repr(error))
        _remember(record.levelno, line)
        self._waiting.append(line)
        self._write_waiting()

    def write_event(self, level: int, name: str, fields: Mapping[str, object]) -> None:
        """Write one event without a LogRecord; never raises."""
        level_name = logging.getLevelName(level)
        try:
            line = self._format.format_event(time.time(), level_name, name, fields)
        except Exception as error:  # noqa: BLE001
            # As above.
            line = self._format_plain("a log entry could not be written", error=repr(error))
        _remember(level, line)
        self.acquire()
        try:
            self._waiting.append(line)
            if level >= logging.WARNING or not self._will_write():
                self._write_waiting()
        finally:
            self.release()

    def _will_write(self) -> bool:
        """Have the running event loop write what waits in its next turn; False if none is running."""
        # Commands that only print a text do without it.
        from asyncio import get_running_loop  # noqa: PLC0415

        try:
            loop = get_running_loop()
        except RuntimeError:
            return False
        if self._writes_soon is not loop:
            loop.call_soon(self.flush)
            self._writes_soon = loop
        return True

    def flush(self) -> None:
        """Write what waits; also called at the end of the process."""
        self.acquire()
        try:
            self._writes_soon = None
            self._write_waiting()
        finally:
            self.release()

    def _write_waiting(self) -> None:
        lines, self._waiting = self._waiting, []
        for some in _together(lines, self._CHUNK):
            if not (self._written_after_dropped() and self._write("\n".join(some))):
                self._dropped += len(some)

    def _written_after_dropped(self) -> bool:
        """Write the number of dropped lines, if any; False if that fails."""
        if self._dropped:
            if not self._write(self._format_plain("log lines dropped", count=self._dropped)):
                return False
            self._dropped = 0
        return True

    def _format_plain(self, name: str, **fields: str | int) -> str:
        return self._format.format_event(time.time(), "WARNING", name, fields)

    def _write(self, line: str) -> bool:
        """Write a line; False if it was not written whole."""
        # Terminate a line that was only written in part.
        data = f"\n{line}\n" if self._torn else f"{line}\n"
        try:
            if self._poll is None:
                self._stream.write(data)
                self._stream.flush()
                return True
            return self._write_to_descriptor(data.encode("ascii"), self._poll)
        except (OSError, ValueError, AttributeError):
            # Closed, broken, or None as in a process without standard error.
            return False

    def _write_to_descriptor(self, data: bytes, poll: select.poll) -> bool:
        begun = 0
        while begun < len(data):
            if not poll.poll(0 if self._stuck else self._WAIT):
                self._stuck = True
                return False
            begun += os.write(_STDERR, data[begun : begun + self._CHUNK])
            self._torn = begun < len(data)
        self._stuck = False
        return True


def _together(lines: list[str], most: int) -> Iterator[list[str]]:
    """Whole lines that are written by one call of at most so many bytes, so that other processes cannot write into a line."""
    some: list[str] = []
    size = 1
    for line in lines:
        if some and size + len(line) >= most:
            yield some
            some, size = [], 1
        some.append(line)
        size += len(line) + 1
    if some:
        yield some


def _remember(level: int, line: str) -> None:
    if level >= logging.WARNING:
        name = "warning" if level < logging.ERROR else "error"
        recent.append((time.time(), name, line[:MESSAGE_LIMIT]))


class Remembering(logging.Handler):
    """Remembers warnings and errors for operators where another application does the logging."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._format = TextFormatter()

    def emit(self, record: logging.LogRecord) -> None:
        """Remember one record; never raises."""
        try:
            _remember(record.levelno, self._format.format(record))
        except Exception as error:  # noqa: BLE001
            # As in `StderrHandler`.
            _remember(record.levelno, f"a log entry could not be formatted: {error!r}")


def remember_elsewhere() -> None:
    """Remember warnings also in a process whose logging was not configured here."""
    logger = logging.getLogger("tusd_py")
    is_ours = any(isinstance(each, StderrHandler) for each in logging.root.handlers)
    if not is_ours and not any(isinstance(each, Remembering) for each in logger.handlers):
        logger.addHandler(Remembering())


_SERVERS = ("uvicorn.error", "uvicorn", "gunicorn.error", "hypercorn.error")
"""Loggers of servers that run applications; the first one with handlers tells where lines go."""


def join_server(level: str | None) -> None:
    """Have lines appear where those of the ASGI server do, in an application that does not configure logging itself.

    level: the least severe level that is logged; None for the server's.
    """
    names = ("tusd_py", "tusd_hooks", "tusd_workers")
    if logging.root.handlers:
        return
    servers = (logging.getLogger(name) for name in _SERVERS)
    server = next((each for each in servers if each.handlers), None)
    if server is None:
        return
    number = (
        server.getEffectiveLevel()
        if level is None
        else logging.getLevelNamesMapping()[level.upper()]
    )
    for logger in map(logging.getLogger, names):
        if any(not isinstance(each, Remembering) for each in logger.handlers):
            # The application has said where they go.
            continue
        for handler in server.handlers:
            logger.addHandler(handler)
        if logger.level == logging.NOTSET:
            logger.setLevel(number)


_STDERR = 2


def _poll_of(stream: TextIO) -> select.poll | None:
    """A poll for the descriptor of standard error; None if `stream` is something else."""
    try:
        if stream is not sys.__stderr__ or stream.fileno() != _STDERR:
            return None
    except (OSError, ValueError, AttributeError):
        return None
    poll = select.poll()
    poll.register(_STDERR, select.POLLOUT)
    return poll


def configure(format: Literal["text", "json"], level: str) -> None:
    """Send all logging of the process to standard error; `level` is debug, info, warning or error.

    May be called again, also with other values. uvicorn's warnings and errors are written in the same format; its lines for
    requests are not, as the endpoint writes its own.
    """
    handler = StderrHandler(JSONFormatter() if format == "json" else TextFormatter())
    root = logging.getLogger()
    for old in root.handlers[:]:
        if isinstance(old, StderrHandler):
            old.flush()
            root.removeHandler(old)
    root.addHandler(handler)
    number = logging.getLevelNamesMapping()[level.upper()]
    root.setLevel(number)
    logging.captureWarnings(True)
    # Do not collect what our formats do not show.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    for name in ("uvicorn", "uvicorn.error", "uvicorn.asgi", "uvicorn.access"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.setLevel(logging.NOTSET)
        logger.propagate = True
    quiet = logging.NOTSET if number <= logging.DEBUG else max(number, logging.WARNING)
    logging.getLogger("uvicorn").setLevel(quiet)
    logging.getLogger("asyncio").setLevel(quiet)
    logging.getLogger("uvicorn.access").setLevel(logging.CRITICAL + 1)
