"""The fixtures of `tests/clients`, for applications."""

from tests.clients.conftest import make_source, run_tus_js, tus_js_installed

__all__ = ["make_source", "run_tus_js", "tus_js_installed"]
