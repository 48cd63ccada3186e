"""The settings by which a server removes uploads, kept in its state directory, so that commands do not go by others unawares.

A server tells clients until when an upload is kept. A sweep by a command or a worker without the server's options would go by
the defaults, and remove what the server has promised to keep. The last server that started counts. Not for: a server's own
sweeps, and values that were given to a command.
"""

from __future__ import annotations

import logging

from tusd_py.service import state_file
from tusd_py.settings.model import Settings
from tusd_py.settings.reference import catalogue
from tusd_py.storage.base import StorageError

logger = logging.getLogger(__name__)

_FILE = "removal-settings"
_NAMES = ("expire_after", "retain_finished", "tombstone_ttl")


class OtherSettings(StorageError):
    """The server goes by other settings, and none were given. The text names both values."""


def remember(settings: Settings) -> None:
    """Keep the settings of a server, as far as that is possible now; blocking."""
    path = settings.state_dir / _FILE
    wanted = {name: getattr(settings, name) for name in _NAMES}
    if state_file.read(path) == wanted:
        return
    try:
        state_file.write(path, wanted)
    except OSError as problem:
        logger.debug("the settings of removals are not kept: %r", problem)


def check(settings: Settings) -> None:
    """Raise OtherSettings if a sweep by these settings could remove what the server keeps, or keep what it removes."""
    kept = state_file.read(settings.state_dir / _FILE)
    for each in catalogue(type(settings)):
        if each.name not in _NAMES or each.name in settings.model_fields_set:
            continue
        ours: object = getattr(settings, each.name)
        theirs = kept.get(each.name, ours)
        if theirs != ours and isinstance(theirs, int | float):
            raise OtherSettings(
                f"the server goes by {each.flag} {each.text(theirs)}, and this command by {each.text(ours)}, the default: "
                f"give it the server's options, or {each.flag} itself"
            )
