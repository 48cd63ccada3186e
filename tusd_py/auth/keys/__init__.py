"""Keys for verifying access tokens: shared secrets, or public keys from a key set.

The allowed algorithms and the `kid` of a token select the keys to try. The `kid` is only compared: nothing in a token is opened
or fetched.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from jwt import PyJWK


class KeysUnavailable(Exception):
    """There are no keys, as their source is unavailable; the text is for the log."""


class Keys(Protocol):
    """Keys for verifying signatures."""

    async def candidates(self, kid: str | None, algorithm: str) -> Sequence[bytes | PyJWK]:
        """The keys that may have signed a token with this header; empty if none can have. Raises KeysUnavailable."""

    async def start(self) -> None:
        """Load the keys. A source that is unavailable is logged, and tried again when a key is needed."""

    async def stop(self) -> None:
        """Stop the updates in the background."""
