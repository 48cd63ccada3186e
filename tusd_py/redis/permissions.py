"""What the Redis user of an instance must be allowed, and how to find out whether it is.

Redis checks a user's rights when a command is queued in a transaction. So each command is queued once on keys of the instance
and the transaction is discarded: nothing is carried out. Not for: sending the questions, which each kind of client does itself.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence

from tusd_py import logs
from tusd_py.redis.keys import Keys

logger = logging.getLogger(__name__)

# Every command that is sent or that a script runs, as it would be used; a key, then arguments. docs/state.md lists the same.
_ON_KEYS = {
    "GET": (),
    "MGET": (),
    "SET": ("1",),
    "INCR": (),
    "DEL": (),
    "EXISTS": (),
    "EXPIRE": ("1",),
    "PEXPIRE": ("1",),
    "PTTL": (),
    "TYPE": (),
    "HDEL": ("a",),
    "HEXISTS": ("a",),
    "HGET": ("a",),
    "HGETALL": (),
    "HINCRBY": ("a", "1"),
    "HSET": ("a", "1"),
    "HVALS": (),
    "BLPOP": ("1",),
    "LLEN": (),
    "LPUSH": ("1",),
    "LRANGE": ("0", "0"),
    "LTRIM": ("0", "0"),
    "RPUSH": ("1",),
    "SADD": ("a",),
    "SMEMBERS": (),
    "SREM": ("a",),
    "ZADD": ("1", "a"),
    "ZCARD": (),
    "ZCOUNT": ("0", "0"),
    "ZRANGE": ("0", "0"),
    "ZRANGEBYSCORE": ("0", "0"),
    "ZREM": ("a",),
    "ZREMRANGEBYRANK": ("0", "0"),
    "ZREMRANGEBYSCORE": ("0", "0"),
    "ZSCORE": ("a",),
}


def questions(keys: Keys) -> list[tuple[str, ...]]:
    """The commands that are to be queued between MULTI and DISCARD."""
    key, channel = keys.probe(), keys.lock_channel("probe")
    # A key of each kind: rights may end within the prefix.
    job = f"{keys.prefix}rq:probe"
    asked = [(name, key, *arguments) for name, arguments in _ON_KEYS.items()]
    asked += [(name, job, *_ON_KEYS[name]) for name in ("HGETALL", "HSET", "DEL")]
    return [
        *asked,
        ("RENAME", job, f"{job}-aside"),
        ("SCAN", "0"),
        ("TIME",),
        ("PING",),
        ("EVAL", "return 1", "1", key),
        ("EVALSHA", "0" * 40, "1", key),
        ("SCRIPT", "LOAD", "return 1"),
        ("PUBLISH", channel, ""),
        ("SUBSCRIBE", channel),
        ("UNSUBSCRIBE", channel),
    ]


def commands(keys: Keys) -> set[str]:
    """The names of all commands that are needed, those of the transaction itself among them."""
    return {"MULTI", "EXEC", "DISCARD", *map(_name, questions(keys))}


def refused(asked: Sequence[Sequence[str]], answers: Sequence[object]) -> list[tuple[str, str]]:
    """The commands that are refused, with what Redis says; answers: to those, errors among them."""
    found = []
    for question, answer in zip(asked, answers, strict=True):
        text = str(answer)
        if isinstance(answer, Exception) and re.search(r"NOPERM|permission", text, re.IGNORECASE):
            found.append((_name(question), text.removeprefix("NOPERM ")))
    return found


def _name(question: Sequence[str]) -> str:
    """Name a command as an ACL does, with its subcommand."""
    return "|".join(question[:2]) if question[0] == "SCRIPT" else question[0]


_reported: set[tuple[str, str]] = set()
"""Servers and commands of which this process has said that they are refused."""


def report(server: str, command: str, reason: str) -> None:
    """Log that a server refuses a command to its user; once for each in the life of this process."""
    key = (server, command.upper())
    if key not in _reported:
        _reported.add(key)
        logs.event(
            logger,
            logging.ERROR,
            "redis error",
            command=command.upper(),
            reason=f"NOPERM {reason} (docs/state.md lists what the Redis user needs)",
        )


def is_reported(server: str) -> bool:
    """Whether anything was reported of a server."""
    return any(name == server for name, _ in _reported)
