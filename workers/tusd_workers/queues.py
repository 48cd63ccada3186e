"""The names of queues, and of what is scheduled, in rq's world.

rq's keys all begin with `rq:`, whoever uses them; so that instances can share a Redis, their names carry the prefix of the
instance's keys.
"""

from __future__ import annotations

import hashlib
import re

EXPIRY = "expiry"
"""Sweeps."""

DELIVERY = "delivery"
"""Events that hooks are told of."""

QUEUES = (EXPIRY, DELIVERY)
"""Every queue, the most urgent first: sweeps are few and soon done."""

# rq allows letters, digits, hyphens and underscores in ids.
_FOREIGN = re.compile(r"[^A-Za-z0-9]+")


def queue_name(prefix: str, queue: str) -> str:
    """What rq calls one of our queues; prefix is that of the instance's keys."""
    return f"{_instance(prefix)}-{queue}"


def job_id(prefix: str, schedule: str, slot: int) -> str:
    """The id of a scheduled job. slot: which one in the row of them; whoever schedules it arrives at the same id."""
    return f"{job_prefix(prefix, schedule)}{slot}"


def job_prefix(prefix: str, kind: str) -> str:
    """What the ids of all jobs of a kind begin with, in one instance."""
    return f"{_instance(prefix)}-{kind}-"


def _instance(prefix: str) -> str:
    word = _FOREIGN.sub("-", prefix).strip("-") or "tusd"
    if prefix == f"{word}:":
        return word
    return f"{word}-{hashlib.sha256(prefix.encode()).hexdigest()[:8]}"
