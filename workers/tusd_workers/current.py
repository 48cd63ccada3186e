"""The instance that this process works for. Jobs carry no settings, so that secrets stay out of Redis."""

from __future__ import annotations

from dataclasses import dataclass

from tusd_py.settings.model import Settings


@dataclass(frozen=True, slots=True)
class Instance:
    """The settings of an instance, and the URL of its Redis, which may be the embedded one."""

    settings: Settings
    redis_url: str


_instance: list[Instance] = []


def use(settings: Settings, redis_url: str) -> None:
    """Set the instance that jobs of this process work for."""
    _instance[:] = [Instance(settings, redis_url)]


def instance() -> Instance:
    """Return the instance of this process. Raises RuntimeError outside a worker."""
    if not _instance:
        raise RuntimeError(
            "jobs run in the worker of an instance (tusd-py worker), not in rq's own"
        )
    return _instance[0]
