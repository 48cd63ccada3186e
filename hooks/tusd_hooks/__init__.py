"""Hooks that come with the server and that operators choose in its settings.

A hook is told about the life of an upload, and a pre-hook may refuse a step of it. The package
stands apart from ``tusd_py`` because hooks are changed and deployed apart from the server; it
imports the server's events and is never imported by the server other than by the name in a setting.
"""
