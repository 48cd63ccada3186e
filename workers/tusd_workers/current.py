"""The worker in whose process a job runs: jobs in the queue carry no settings, so that secrets stay out of Redis."""

from __future__ import annotations

from dataclasses import dataclass

from tusd_py.settings.model import Settings


@dataclass(frozen=True, slots=True)
class Instance:
    """What the worker works for. redis_url: of its Redis, also where that is the embedded one."""

    settings: Settings
    redis_url: str


_instance: list[Instance] = []


def use(settings: Settings, redis_url: str) -> None:
    """Jobs of this process work for this from now on."""
    _instance[:] = [Instance(settings, redis_url)]


def instance() -> Instance:
    """What this worker works for. Raises RuntimeError where no worker of ours runs."""
    if not _instance:
        raise RuntimeError(
            "jobs run in the worker of an instance (tusd-py worker), not in any of rq's"
        )
    return _instance[0]
