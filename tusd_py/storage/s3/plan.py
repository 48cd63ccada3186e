"""Where the parts of an upload begin and end: by the number alone, so that nothing has to be counted or remembered.

Part n always holds the same range of bytes. A part that is missing is seen, one that is sent twice has the same bytes, and what
a holder sends late, after it lost the lock, lies where it belongs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from tusd_py.storage.s3.object_store import MAX_PART_BYTES, MAX_PARTS

_MIB = 1024 * 1024
_SPARE = 0.95
"""Share of the numbers that a known length uses, unless it needs them all."""
_STEPS_OF_ALL = 10
STEP_PARTS = MAX_PARTS // _STEPS_OF_ALL
"""Parts in a step where the store takes as many as S3 does."""
_STEP_BITS = 2
_STEPS = 4


@dataclass(frozen=True, slots=True)
class PartPlan:
    """The sizes of parts.

    Attributes:
        part_bytes: Bytes of the first part.
        grows: Whether parts grow with their number, as the length was not known: fourfold after each step, three times.
        step_parts: Parts in a step: a tenth of those that the store takes.
        given: What another server stored as the first parts: bytes, and how many of that size. The others follow behind them.
    """

    part_bytes: int
    grows: bool = False
    given: tuple[tuple[int, int], ...] = ()
    step_parts: int = STEP_PARTS

    @classmethod
    def of(cls, length: int | None, *, part_bytes: int, max_parts: int, equal: bool) -> PartPlan:
        """Return the plan of a new upload.

        Args:
            length: Bytes; None if unknown.
            part_bytes: Least size of parts.
            max_parts: Most parts that the store takes.
            equal: The store takes only equal parts, so those of an unknown length cannot grow.
        """
        if length is None:
            return cls(part_bytes, grows=not equal, step_parts=max(1, max_parts // _STEPS_OF_ALL))
        least = -(-length // max(1, int(max_parts * _SPARE)))
        return cls(min(max(part_bytes, -(-least // _MIB) * _MIB), MAX_PART_BYTES))

    def most_bytes(self, max_parts: int) -> int:
        """Bytes in as many parts as the store takes."""
        return self.start(max_parts + 1)

    def size(self, number: int) -> int:
        """Bytes of a part that is not the last."""
        for size, count in self.given:
            if number <= count:
                return size
            number -= count
        if not self.grows:
            return self.part_bytes
        step = min((number - 1) // self.step_parts, _STEPS - 1)
        return min(self.part_bytes << (_STEP_BITS * step), MAX_PART_BYTES)

    def start(self, number: int) -> int:
        """Offset of the first byte of a part."""
        before = 0
        for size, count in self.given:
            if number <= count:
                return before + (number - 1) * size
            before += size * count
            number -= count
        return before + replace(self, given=())._start(number) if before else self._start(number)

    def _start(self, number: int) -> int:
        if not self.grows:
            return (number - 1) * self.part_bytes
        whole_steps = min((number - 1) // self.step_parts, _STEPS - 1)
        step_parts = self.step_parts
        before = sum(step_parts * self.size(1 + step * step_parts) for step in range(whole_steps))
        return before + (number - 1 - whole_steps * step_parts) * self.size(number)

    def number(self, offset: int) -> int:
        """The part that holds the byte at `offset`."""
        first = 0
        for size, count in self.given:
            if offset < size * count:
                return first + offset // size + 1
            offset -= size * count
            first += count
        return first + replace(self, given=())._number(offset) if first else self._number(offset)

    def _number(self, offset: int) -> int:
        if not self.grows:
            return offset // self.part_bytes + 1
        step = 0
        while step < _STEPS - 1 and self.start(1 + (step + 1) * self.step_parts) <= offset:
            step += 1
        first = 1 + step * self.step_parts
        return first + (offset - self.start(first)) // self.size(first)
