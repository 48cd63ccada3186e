"""Load the hooks of the settings, for a server or a worker, and decide which of the two calls them for which events.

The server calls the operator's hooks for `pre-` events and for progress; workers, if there are any, call them for the other
`post-` events. Hooks that come with the server are called there only. Not for: calling hooks.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType

from tusd_py.events.hooks import Hooks, listens
from tusd_py.events.model import EventType, HookError, UploadView
from tusd_py.events.outbox_record import is_secret
from tusd_py.settings.model import Settings
from tusd_py.telemetry.counters import Counters

logger = logging.getLogger(__name__)


def runs_workers(settings: Settings) -> bool:
    """Whether `tusd-py serve` starts a worker, if there is a Redis."""
    return settings.jobs == "on" or (settings.jobs == "auto" and settings.redis_url is None)


def are_delivered(settings: Settings, *, runs_jobs: bool, has_redis: bool) -> bool:
    """Whether workers deliver `post-` events, instead of the server.

    runs_jobs: whether this process is, or works for, a server that starts workers if the settings say so. has_redis: whether it
    has a Redis.
    """
    if settings.hooks_delivery != "auto":
        return settings.hooks_delivery == "workers"
    if settings.redis_url is not None:
        return True
    return runs_jobs and has_redis and runs_workers(settings)


def in_server(
    settings: Settings, counters: Counters, *, given: Iterable[object] = (), delivered: bool
) -> Hooks:
    """Load all hooks. Those that come with the server are last, so that they see the changes of the others.

    Args:
        settings: Name the operator's hooks.
        counters: Count calls.
        given: Objects that are called before the hooks of the settings; they exist in this process only.
        delivered: Whether workers deliver `post-` events to the operator's hooks.

    Raises:
        HookError: A hook cannot be loaded.
    """
    operators = _operators(settings)
    if delivered:
        _warn_about_secrets(settings)
    own = [_load("tusd_hooks.duplicates:Duplicates")] if settings.duplicates != "off" else []
    return Hooks(
        [*given, *operators.values(), *own],
        timeout=settings.hooks_timeout,
        counters=counters,
        delivered=operators if delivered else None,
    )


def fingerprints(settings: Settings) -> Callable[[UploadView], str | None]:
    """Return what computes the fingerprint by which duplicates of an upload are found; None for one that is not checked."""
    if settings.duplicates == "off":
        return lambda _upload: None
    # By its name, as the hooks that come with the server.
    identity = importlib.import_module("tusd_hooks.fingerprint").Identity.of(settings)
    computes: Callable[[UploadView], str | None] = identity.of_upload
    return computes


def _warn_about_secrets(settings: Settings) -> None:
    names = [name for name in settings.hooks_http_forward_headers if is_secret(name)]
    if names:
        logger.warning(
            "--hooks-http-forward-headers: %s is left out of events that workers deliver, as credentials are not "
            "stored; --hooks-delivery server sends it",
            ", ".join(names),
        )


def in_worker(settings: Settings) -> Hooks:
    """Load the hooks that a worker calls. Raises HookError."""
    operators = _operators(settings)
    return Hooks(operators.values(), timeout=settings.hooks_timeout, delivered=operators)


def _operators(settings: Settings) -> dict[str, object]:
    specifications = list(settings.hooks)
    if settings.hooks_http:
        specifications.append("tusd_hooks.http:HTTPHooks")
    if settings.hooks_dir is not None:
        specifications.append("tusd_hooks.files:FileHooks")
    return dict(zip(_names(specifications), map(_load, specifications), strict=True))


def _names(specifications: Iterable[str]) -> list[str]:
    """The names of hooks in the outbox: equal on all machines, wherever the file is there."""
    names: list[str] = []
    for specification in specifications:
        place, function = _split(specification)
        short = Path(place).name if place.endswith(".py") else place
        name = f"{short}:{function}" if function else short
        again = sum(1 for each in names if each.partition("#")[0] == name)
        names.append(f"{name}#{again + 1}" if again else name)
    return names


def _split(specification: str) -> tuple[str, str]:
    """The place of a hook, and the name in it; empty for the module itself."""
    place, separator, name = specification.rpartition(":")
    return (place, name) if separator else (name, "")


def _load(specification: str) -> object:
    """Load `module:name`, `module`, `path/to/file.py` or `path/to/file.py:name`; a class is instantiated. Raises HookError."""
    place, name = _split(specification)
    try:
        module = (
            _load_file(Path(place)) if place.endswith(".py") else importlib.import_module(place)
        )
        hook: object = getattr(module, name) if name else module
        if inspect.isclass(hook):
            hook = hook()
    except Exception as problem:
        raise HookError(
            f"hook {specification!r} cannot be loaded: {type(problem).__name__}: {problem}"
        ) from problem
    if not any(listens(hook, event_type) for event_type in EventType):
        names = ", ".join(event_type.function for event_type in EventType)
        raise HookError(f"hook {specification!r} has none of the functions {names}")
    return hook


def _load_file(path: Path) -> ModuleType:
    specification = importlib.util.spec_from_file_location(f"tusd_hook_{path.stem}", path)
    if specification is None or specification.loader is None:
        raise ImportError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module
