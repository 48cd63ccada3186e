"""What is uploaded and what goes wrong, drawn from a seed before anything happens."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

KIB = 1 << 10
MIB = 1 << 20
NOISE = random.Random(21).randbytes(8 * MIB)
"""Where the bytes of uploads come from."""

Shape = Literal["pieces", "deferred", "with body", "whole", "joined", "joined early"]
"""pieces: created, then sent. with body: the first piece comes with the creation. whole: all of them do."""
Duplicate = Literal["none", "pending", "finished", "removed", "forced", "twins"]
"""When the same is created again: while it is pending, once it is finished or removed, with force, or twice at once."""
End = Literal["kept", "removed", "abandoned"]


@dataclass(frozen=True)
class UploadPlan:
    """One upload. contents: of each part, of which there is one unless it is joined. piece: bytes a request.

    verified, corrupt: share of the requests that have a checksum, and of these with a wrong one.
    """

    name: str
    ietf: bool
    shape: Shape
    contents: tuple[memoryview, ...]
    piece: int
    verified: float
    corrupt: float
    duplicate: Duplicate
    end: End


class UploadPlans:
    """An endless row of plans for one client."""

    def __init__(self, seed: int, client: int, largest: int) -> None:
        self._dice = random.Random(f"{seed}/uploads/{client}")
        self._name = f"{seed}-{client}"
        self._largest = largest
        self._number = 0

    def __iter__(self) -> Iterator[UploadPlan]:
        return self

    def __next__(self) -> UploadPlan:
        dice = self._dice
        self._number += 1
        ietf = dice.random() < 0.25
        shapes: tuple[Shape, ...] = ("pieces", "deferred", "with body", "whole")
        shape: Shape = dice.choice(
            shapes if ietf else (*shapes, "pieces", "joined", "joined early")
        )
        contents = tuple(self._content() for _ in range(self._parts(shape)))
        size = sum(map(len, contents))
        verified = dice.choice((0.0, 0.5, 1.0))
        return UploadPlan(
            name=f"{self._name}-{self._number}",
            ietf=ietf,
            shape=shape,
            contents=contents,
            piece=max(1, dice.choice((size, size // 2, size // 3, 64 * KIB, 256 * KIB))),
            verified=verified,
            corrupt=0.2,
            duplicate=self._duplicate(ietf, shape),
            end=dice.choices(("kept", "removed", "abandoned"), (4, 6, 1))[0],
        )

    def _parts(self, shape: Shape) -> int:
        return self._dice.randint(1, 3) if shape.startswith("joined") else 1

    def _content(self) -> memoryview:
        dice = self._dice
        most = dice.choices((300, 30 * KIB, self._largest // 6, self._largest), (4, 4, 4, 1))[0]
        size = dice.randint(1, most)
        start = dice.randrange(len(NOISE) - size)
        return memoryview(NOISE)[start : start + size]

    def _duplicate(self, ietf: bool, shape: Shape) -> Duplicate:
        # Neither a deferred length nor a part is compared when it is created.
        if ietf or shape in ("deferred", "joined", "joined early"):
            return "none"
        kinds: tuple[Duplicate, ...] = ("pending", "finished", "removed", "forced", "twins")
        return self._dice.choice((*kinds, "none", "none", "none"))


Network = Literal["reset", "end", "cut response", "stall", "half-close", "slow"]
Machine = Literal[
    "kill server",
    "stop server",
    "kill worker",
    "stop worker",
    "redis killed",
    "redis paused",
    "redis flushed",
    "redis read-only",
    "redis without replicas",
    "clock",
    "EIO on write",
    "disk lost bytes",
    "disk full",
    "disk stalls",
    "hooks away",
    "hooks refuse",
]
Kind = Network | Machine

NETWORK: dict[Kind, int] = {
    "reset": 40,
    "end": 20,
    "cut response": 40,
    "stall": 12,
    "half-close": 16,
    "slow": 16,
}
"""What happens to connections, and how often, of all that does."""
MACHINE: dict[Kind, int] = {
    "kill server": 7,
    "stop server": 2,
    "kill worker": 1,
    "stop worker": 1,
    "redis killed": 1,
    "redis paused": 1,
    "redis flushed": 1,
    "redis read-only": 1,
    "redis without replicas": 1,
    "clock": 2,
    "EIO on write": 4,
    "disk lost bytes": 1,
    "disk full": 1,
    "disk stalls": 1,
    "hooks away": 2,
    "hooks refuse": 2,
}
DISK: frozenset[Kind] = frozenset({"EIO on write", "disk lost bytes", "disk full", "disk stalls"})
"""Those that a bucket does not have."""
MOUNTED: frozenset[Kind] = frozenset({"disk full", "disk stalls"})
"""Those that need a file system of its own, and so the right to mount."""


@dataclass(frozen=True)
class FaultPlan:
    """One fault. after, lasts: seconds. amount: bytes, or whatever the kind counts. place: a number to choose by."""

    kind: Kind
    after: float
    lasts: float
    amount: int
    place: int


class FaultPlans:
    """An endless row of faults. pace: seconds between two of them on average. without: kinds that cannot be had here."""

    def __init__(self, seed: int, pace: float, without: frozenset[Kind]) -> None:
        self._dice = random.Random(f"{seed}/faults")
        self._pace = pace
        weights = {**NETWORK, **MACHINE}
        self._kinds = {kind: weight for kind, weight in weights.items() if kind not in without}

    def __iter__(self) -> Iterator[FaultPlan]:
        return self

    def __next__(self) -> FaultPlan:
        dice = self._dice
        return FaultPlan(
            kind=dice.choices([*self._kinds], [*self._kinds.values()])[0],
            after=dice.uniform(0, 2 * self._pace),
            lasts=dice.uniform(0.2, 1.2),
            amount=dice.randint(0, dice.choice((500, 500, 500, 5000, 100_000))),
            place=dice.randrange(1 << 16),
        )
