"""A hook file that gives every upload the same owner, as if users were authenticated."""

from __future__ import annotations

from dataclasses import replace

from tusd_hooks.duplicates import Duplicates
from tusd_py.events.model import Event


def _owned(event: Event) -> Event:
    return replace(event, upload=replace(event.upload, owner="somebody"))


class Owned(Duplicates):
    """See the module."""

    async def pre_create(self, event: Event) -> None:
        await super().pre_create(_owned(event))

    async def confirm_create(self, event: Event) -> None:
        await super().confirm_create(_owned(event))

    async def create_failed(self, event: Event) -> None:
        await super().create_failed(_owned(event))

    async def post_finish(self, event: Event) -> None:
        await super().post_finish(_owned(event))

    async def pre_terminate(self, event: Event) -> None:
        await super().pre_terminate(_owned(event))

    async def post_terminate(self, event: Event) -> None:
        await super().post_terminate(_owned(event))
