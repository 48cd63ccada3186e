"""Metrics of several processes that serve one port: whichever is asked tells the sum of all.

Each process writes what it has counted to a file of its own, once a second, and adds the others' files to its own numbers when
it is asked. A process that is started again goes on from its predecessor's file, so counters never fall.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

logger = logging.getLogger(__name__)

_INTERVAL = 1.0
_Key = tuple[str, tuple[tuple[str, str], ...]]


def clear(directory: Path) -> None:
    """Forgets what an earlier run has left; for the parent, before it starts its processes."""
    for path in directory.glob("*.json"):
        path.unlink(missing_ok=True)


class Pool(Collector):
    """The sum of what the processes count. index: this process's number; own: what it counts itself."""

    def __init__(self, directory: Path, index: int, own: Collector) -> None:
        self._directory = directory
        self._path = directory / f"{index}.json"
        self._own = own
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as problem:
            logger.warning("metrics of this process cannot be shared: %s", problem)
        self._before = _read(self._path, gauges=False)

    def collect(self) -> Iterator[Metric]:
        """The metric families with everybody's numbers."""
        others: dict[_Key, float] = dict(self._before)
        for path in self._directory.glob("*.json"):
            if path != self._path:
                for key, value in _read(path, gauges=True).items():
                    others[key] = others.get(key, 0.0) + value
        for family in self._own.collect():
            yield _added(family, others)

    async def publish_regularly(self) -> None:
        """Writes this process's numbers once a second until it is cancelled, and once more then."""
        try:
            while True:
                await self._publish()
                await asyncio.sleep(_INTERVAL)
        finally:
            await self._publish()

    async def _publish(self) -> None:
        samples: list[list[object]] = []
        for family in self._own.collect():
            gauge = family.type == "gauge"
            for sample in family.samples:
                key = _key(sample)
                value = sample.value + (0.0 if gauge else self._before.get(key, 0.0))
                samples.append([gauge, sample.name, list(sample.labels.items()), value])
        # In a thread: the disk may stand still, and nobody waits for these numbers.
        await asyncio.to_thread(self._write, samples)

    def _write(self, samples: list[list[object]]) -> None:
        fresh = self._path.with_suffix(".new")
        try:
            fresh.write_text(json.dumps(samples), encoding="utf-8")
            os.replace(fresh, self._path)
        except OSError as problem:
            logger.warning("metrics of this process cannot be shared: %s", problem)


def _key(sample: Sample) -> _Key:
    return sample.name, tuple(sorted(sample.labels.items()))


def _added(family: Metric, others: dict[_Key, float]) -> Metric:
    """The family with the others' numbers; samples that only others have come along."""
    if family.type == "info":
        return family
    result = Metric(family.name, family.documentation, family.type, family.unit)
    known = {_key(sample) for sample in family.samples}
    names = {sample.name for sample in family.samples} | {family.name, f"{family.name}_total"}
    for sample in family.samples:
        value = sample.value + others.get(_key(sample), 0.0)
        result.add_sample(sample.name, sample.labels, value)
    for (name, labels), value in others.items():
        if name in names and (name, labels) not in known:
            result.add_sample(name, dict(labels), value)
    return result


def _read(path: Path, *, gauges: bool) -> dict[_Key, float]:
    """What another process, or this one's predecessor, wrote; nothing where that cannot be read."""
    try:
        samples: Iterable[tuple[bool, str, list[tuple[str, str]], float]] = json.loads(
            path.read_text(encoding="utf-8")
        )
    except (OSError, ValueError):
        return {}
    return {
        (name, tuple(sorted((key, value) for key, value in labels))): number
        for gauge, name, labels, number in samples
        if gauges or not gauge
    }
