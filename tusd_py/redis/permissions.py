"""The commands that the Redis user of an instance must be allowed to run, and how to check that.

Redis checks permissions when a command is queued in a transaction. So each command is queued once on keys of the instance, and
the transaction is discarded: nothing is executed. Each kind of client sends these probes itself.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence

from tusd_py import logs
from tusd_py.redis.keys import Keys

logger = logging.getLogger(__name__)

# Every command that a client or a script runs, with its arguments after the key. docs/state.md lists the same commands.
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
    "HLEN": (),
    "HSCAN": ("0",),
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
    "UNLINK": (),
    "ZADD": ("1", "a"),
    "ZCARD": (),
    "ZCOUNT": ("0", "0"),
    "ZINCRBY": ("1", "a"),
    "ZRANGE": ("0", "0"),
    "ZRANGEBYSCORE": ("0", "0"),
    "ZRANK": ("a",),
    "ZREM": ("a",),
    "ZREMRANGEBYRANK": ("0", "0"),
    "ZREMRANGEBYSCORE": ("0", "0"),
    "ZREVRANK": ("a",),
    "ZSCORE": ("a",),
}


def questions(keys: Keys) -> list[tuple[str, ...]]:
    """Return the commands to queue between MULTI and DISCARD."""
    key, channel = keys.probe, keys.lock_channel("probe")
    # Keys of both kinds: permissions may differ within the prefix.
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
    """Return the names of all required commands, including those of the transaction."""
    return {"MULTI", "EXEC", "DISCARD", *map(_name, questions(keys))}


def refused(asked: Sequence[Sequence[str]], answers: Sequence[object]) -> list[tuple[str, str]]:
    """Return the refused commands and the error of each. answers: replies to the commands, errors included."""
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
"""Servers and refused commands that this process has logged."""


def report(server: str, command: str, reason: str) -> None:
    """Log that a server refuses a command to its user, once per process."""
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
    """Return whether a refused command of a server was logged."""
    return any(name == server for name, _ in _reported)
