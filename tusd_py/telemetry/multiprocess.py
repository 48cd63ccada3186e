"""Sum the metrics of several processes that serve one port, so that a scrape of any of them returns the total.

Each process writes its metrics to a file once a second, and adds the files of the others at a scrape. A restarted process
continues from the file of its predecessor, so counters never decrease.
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

_INTERVAL_SECONDS = 1.0
_Key = tuple[str, tuple[tuple[str, str], ...]]


def clear(directory: Path) -> None:
    """Remove the files of an earlier run; the parent does so before it starts the processes."""
    for path in directory.glob("*.json"):
        path.unlink(missing_ok=True)


class Pool(Collector):
    """Collects the sum of all processes. index: number of this process; own: collects its metrics."""

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
        """The metric families, summed over all processes."""
        others: dict[_Key, float] = dict(self._before)
        for path in self._directory.glob("*.json"):
            if path != self._path:
                for key, value in _read(path, gauges=True).items():
                    others[key] = others.get(key, 0.0) + value
        for family in self._own.collect():
            yield _added(family, others)

    async def publish_regularly(self) -> None:
        """Write this process's metrics once a second until cancelled, and once more then."""
        try:
            while True:
                await self._publish()
                await asyncio.sleep(_INTERVAL_SECONDS)
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
        # In a thread, as the disk may stall.
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
    """The family plus the samples of the other processes, including samples that only those have."""
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
    """Read the file of another process, or of this one's predecessor; empty if it cannot be read."""
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
