"""The keys that access tokens are verified with: secrets that are shared, or public ones from a key set.

Which of them is tried is decided by the algorithm that the operator allows and by the `kid` of the token, which is only ever
compared: nothing in a token is opened, fetched or run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from jwt import PyJWK


class KeysUnavailable(Exception):
    """There are no keys, because where they come from does not answer; the text is for the log."""


class Keys(Protocol):
    """Keys to verify with."""

    async def candidates(self, kid: str | None, algorithm: str) -> Sequence[bytes | PyJWK]:
        """The keys that may have signed a token with this header; empty if none can have. Raises KeysUnavailable."""

    async def start(self) -> None:
        """Gets them, if they come from elsewhere. One that does not answer is logged, and asked again when needed."""

    async def stop(self) -> None:
        """Ends what goes on in the background."""
