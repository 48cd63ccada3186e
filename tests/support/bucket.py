"""The bucket of a server whose uploads are in one, looked at from outside: for whole runs of tests on another store.

`TEST_STORE=seaweedfs` (or versitygw) gives every server of a test a prefix of the bucket in place of its upload directory.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path
from typing import cast

import botocore.session
import pytest
from botocore.exceptions import ClientError

from tests.s3 import servers
from tests.s3.servers import BUCKET, ENVIRONMENT, Kind

STORE = os.environ.get("TEST_STORE", "file")
"""Where servers of tests keep uploads: file, or a kind of object store."""
LIMIT = None if STORE == "file" else 5 * 1024**4
"""The maximum size of an upload without any setting, in bytes."""


def files_only(reason: str) -> pytest.MarkDecorator:
    """Marks a test that cannot run on an object store. reason: what it does to files, for docs/conformance.md."""
    return pytest.mark.skipif(STORE != "file", reason=reason)


class Prefix:
    """The prefix that stands for an upload directory."""

    def __init__(self, upload_dir: Path) -> None:
        self._prefix = hashlib.sha256(str(upload_dir).encode()).hexdigest()[:32] + "/"
        self._server = servers.shared(cast(Kind, STORE))
        session = botocore.session.Session()
        session.set_credentials(servers.ACCESS_KEY, servers.SECRET_KEY)
        self._client = session.create_client(
            "s3", endpoint_url=self._server.endpoint, region_name=servers.REGION
        )

    @property
    def flags(self) -> tuple[str, ...]:
        return (
            *("--s3-bucket", BUCKET, "--s3-endpoint", self._server.endpoint),
            *("--s3-object-prefix", self._prefix, "--s3-info-prefix", self._prefix),
            *("--s3-flush-interval", "20ms"),
        )

    @property
    def env(self) -> dict[str, str]:
        return ENVIRONMENT

    def _get(self, name: str) -> bytes | None:
        try:
            found = self._client.get_object(Bucket=BUCKET, Key=self._prefix + name)
            return bytes(found["Body"].read())
        except ClientError as problem:
            if problem.response["Error"]["Code"] in {"NoSuchKey", "404"}:
                return None
            raise

    def stored(self, upload_id: str) -> bytes:
        """The bytes of an upload, of at most one part."""
        whole = self._get(upload_id)
        return (self._get(f"{upload_id}.part") or b"") if whole is None else whole

    def record(self, upload_id: str) -> dict[str, object]:
        content = self._get(f"{upload_id}.info")
        assert content is not None, f"{upload_id} has no record"
        value = json.loads(content)
        assert isinstance(value, dict)
        return value

    def uploads(self) -> list[str]:
        """The ids of all uploads of which there is anything: bytes, record or tail."""
        found: set[str] = set()
        for page in self._client.get_paginator("list_objects_v2").paginate(
            Bucket=BUCKET, Prefix=self._prefix
        ):
            names = (each["Key"][len(self._prefix) :] for each in page.get("Contents", ()))
            found |= {re.sub(r"[.](info|part)$", "", each) for each in names if each[0] != "."}
        return sorted(found)
