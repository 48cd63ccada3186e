"""Splitting of what there is much of into batches, as a call for many costs little more than one for a few."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator
from itertools import islice
from typing import TypeVar

T = TypeVar("T")


def batched(items: Iterable[T], size: int) -> Iterator[tuple[T, ...]]:
    """Split into tuples of `size` items; the last may have fewer. As `itertools.batched` of Python 3.12."""
    rest = iter(items)
    while some := tuple(islice(rest, size)):
        yield some


async def batched_async(items: AsyncIterator[T], size: int) -> AsyncIterator[list[T]]:
    """Split into lists of `size` items; the last may have fewer."""
    batch: list[T] = []
    async for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
