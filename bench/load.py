"""The load generator: a process that does one piece of work against one server and reports what it saw.

It reads the work as one line of JSON, prepares, says `ready`, waits for a line, does the work, says `done` with the figures,
and keeps its connections until another line comes. What it costs itself is reported too: a client that is busier than the
server measures itself.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time

from bench.client import LoadError
from bench.kinds import KINDS
from bench.work import Done, Latency, Work


def main() -> int:
    """One piece of work, told and reported over standard input and output."""
    work = Work(**json.loads(sys.stdin.readline()))
    if work.cpus:
        os.sched_setaffinity(0, work.cpus)
    job = KINDS[work.kind](work)
    try:
        job.prepare()
        job.engine.timings.seconds.clear()
        gc.collect()
        gc.freeze()
        _say("ready", "")
        sys.stdin.readline()
        began, cpu = time.perf_counter(), time.process_time()
        job.run()
        done = Done(
            seconds=time.perf_counter() - began - job.unmeasured_seconds,
            units=job.units,
            cpu_seconds=time.process_time() - cpu,
            latencies={
                label: Latency.of(seconds) for label, seconds in job.engine.timings.seconds.items()
            },
            paths=[path.decode() for path in job.created],
        )
        _say("done", done.to_json())
        sys.stdin.readline()
    except (LoadError, OSError) as problem:
        _say("failed", str(problem).replace("\n", " "))
        return 1
    return 0


def _say(event: str, text: str) -> None:
    print(event, text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
