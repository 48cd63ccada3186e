"""A resumable upload server: tus 1.0.0 with every extension, for files that matter.

The public API: the names in `__all__`, described in docs/api.md. Where they are defined may change from one version to the
next, so applications and hooks import them from here. They are loaded at their first use: `import tusd_py` alone is cheap.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tusd_py.auth.identity import Identity as Identity
    from tusd_py.events.model import Changes as Changes
    from tusd_py.events.model import Event as Event
    from tusd_py.events.model import EventType as EventType
    from tusd_py.events.model import HookContext as HookContext
    from tusd_py.events.model import HookFailed as HookFailed
    from tusd_py.events.model import HookResponse as HookResponse
    from tusd_py.events.model import Placement as Placement
    from tusd_py.events.model import Reject as Reject
    from tusd_py.events.model import RequestView as RequestView
    from tusd_py.events.model import Stop as Stop
    from tusd_py.events.model import UploadView as UploadView
    from tusd_py.settings.model import Settings as Settings
    from tusd_py.web.app import TusApp as TusApp
    from tusd_py.web.http.protocol import UploadProtocol as UploadProtocol

__version__ = "0.2.0"

__all__ = [
    "Changes",
    "Event",
    "EventType",
    "HookContext",
    "HookFailed",
    "HookResponse",
    "Identity",
    "Placement",
    "Reject",
    "RequestView",
    "Settings",
    "Stop",
    "TusApp",
    "UploadProtocol",
    "UploadView",
    "__version__",
]

_EVENTS = "tusd_py.events.model"
_MODULES = {
    **dict.fromkeys(__all__, _EVENTS),
    "Identity": "tusd_py.auth.identity",
    "Settings": "tusd_py.settings.model",
    "TusApp": "tusd_py.web.app",
    "UploadProtocol": "tusd_py.web.http.protocol",
}


if not TYPE_CHECKING:
    # Hidden from type checkers: to them it would give the package every name.

    def __getattr__(name: str) -> object:
        if name in _MODULES:
            value: object = getattr(import_module(_MODULES[name]), name)
            globals()[name] = value
            return value
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
