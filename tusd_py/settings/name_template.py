"""Templates of the names of finished files: which placeholders there are, and where a template's directory ends.

A template is a path with placeholders, such as `/srv/studies/{owner}/{filename}`. Not for: filling it in
(`storage/finished_names.py`).
"""

from __future__ import annotations

import re

FIELDS = ("id", "owner", "filename", "date")
"""Placeholders besides `metadata.KEY`."""
PLACEHOLDER = re.compile(r"\{(?P<field>[^{}]*)\}")
DEFAULT_NAME = "{filename}"
_METADATA = re.compile(r"metadata\.[!-+\--z|~]+")
_MOST_NAMES = 10
_FORBIDDEN = re.compile(r'[\x00-\x1f\x7f\\:*?"<>|%]')


def check_template(text: str) -> str:
    """Return a template. Raises ValueError that says what is wrong with it."""
    for field in PLACEHOLDER.findall(text):
        if field not in FIELDS and _METADATA.fullmatch(field) is None:
            known = ", ".join(f"{{{name}}}" for name in FIELDS)
            raise ValueError(
                f"{{{field}}} is no placeholder; there are {known} and {{metadata.KEY}}"
            )
    literal = PLACEHOLDER.sub("", text)
    if "{" in literal or "}" in literal:
        raise ValueError("a brace has no partner; write placeholders as in {owner}/{filename}")
    names = [part for part in split_template(text)[1].split("/") if part]
    if len(names) > _MOST_NAMES:
        raise ValueError(f"give at most {_MOST_NAMES} names behind the directory")
    for part in names:
        fixed = PLACEHOLDER.sub("", part)
        if part in (".", "..") or part.startswith("."):
            raise ValueError("give names that do not begin with a dot behind the first placeholder")
        if _FORBIDDEN.search(fixed):
            raise ValueError('give names without control characters and \\ : * ? " < > | %')
    return text


def split_template(text: str) -> tuple[str, str]:
    """Return the directory of a template, up to its first placeholder, and the template of names in it.

    The directory is empty if the first name has a placeholder already. Without any placeholder the text is the directory, and
    files are named as by `DEFAULT_NAME`.
    """
    found = PLACEHOLDER.search(text)
    if found is None:
        return text, DEFAULT_NAME
    directory, _, _ = text[: found.start()].rpartition("/")
    if text.startswith("/") and not directory:
        directory = "/"
    names = text[len(directory) :].strip("/")
    return directory, f"{names}/{DEFAULT_NAME}" if text.endswith("/") else names
