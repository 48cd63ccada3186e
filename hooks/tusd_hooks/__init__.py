"""Hooks that come with the server: duplicate detection, HTTP endpoints and executables.

A hook receives the events of an upload's life, and a pre-hook may refuse a step of it. The package is separate from
``tusd_py`` because hooks are changed and deployed separately; the server imports it only by the name in a setting.
"""
