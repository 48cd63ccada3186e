"""What lies below a prefix of a bucket, looked at past all servers and proxies, and what a sweep would leave there."""

from __future__ import annotations

import asyncio
import json
import os
import time
from pathlib import Path

import botocore.session

from tests.s3.servers import ACCESS_KEY, BUCKET, ENVIRONMENT, REGION, SECRET_KEY, S3Server
from tusd_py.storage.s3.aiobotocore_store import Bucket
from tusd_py.storage.s3.bucket import S3Options
from tusd_py.storage.s3.layout import Layout
from tusd_py.storage.s3.requests import ObjectStore
from tusd_py.storage.s3.store import S3Store

_LATER_SECONDS = 7200.0
"""How far ahead the clock of the last sweep is: what is young may be somebody's."""


class LateStore(S3Store):
    """A store whose clock is ahead, so that what crashes left is old enough to be removed."""

    def now(self) -> float:
        return time.time() + _LATER_SECONDS


class Contents:
    """The objects and multipart uploads below `prefix`."""

    def __init__(self, server: S3Server, prefix: str) -> None:
        self.prefix = prefix
        self._endpoint = server.endpoint
        session = botocore.session.Session()
        session.set_credentials(ACCESS_KEY, SECRET_KEY)
        self._client = session.create_client("s3", endpoint_url=server.endpoint, region_name=REGION)

    def keys(self, *, below: str = "") -> set[str]:
        """All keys, without the prefix. below: what they begin with behind it."""
        pages = self._client.get_paginator("list_objects_v2").paginate(
            Bucket=BUCKET, Prefix=self.prefix + below
        )
        return {
            each["Key"][len(self.prefix) :] for page in pages for each in page.get("Contents", ())
        }

    def pending(self) -> set[str]:
        """The keys of all multipart uploads that are neither complete nor aborted, without the prefix."""
        pages = self._client.get_paginator("list_multipart_uploads").paginate(
            Bucket=BUCKET, Prefix=self.prefix
        )
        return {
            each["Key"][len(self.prefix) :] for page in pages for each in page.get("Uploads", ())
        }

    def abort(self, key: str) -> None:
        """Abort the multipart uploads of a key, as a rule of the bucket does."""
        target = {"Bucket": BUCKET, "Key": self.prefix + key}
        listed = self._client.list_multipart_uploads(Bucket=BUCKET, Prefix=target["Key"])
        for each in listed["Uploads"]:
            self._client.abort_multipart_upload(**target, UploadId=each["UploadId"])

    def events(self, upload_id: str) -> list[str]:
        """The types of an upload's events in the outbox."""
        found = []
        for key in sorted(self.keys()):
            if key.startswith(f".tusd-py/outbox/{upload_id}/"):
                body = self._client.get_object(Bucket=BUCKET, Key=self.prefix + key)["Body"].read()
                found.append(str(json.loads(body)["type"]))
        return found

    def store(self, spool: Path | None = None) -> S3Store:
        """A store on the prefix whose clock is ahead."""
        os.environ.update(ENVIRONMENT)
        bucket = Bucket(BUCKET, endpoint=self._endpoint, path_style=True, repeat_seconds=20)
        options = S3Options(
            BUCKET,
            Layout(self.prefix, self.prefix),
            spool_directory=None if spool is None else str(spool),
        )
        return LateStore(ObjectStore(bucket), options)

    def tidy(self) -> None:
        """Do what the sweep does about what crashes left."""

        async def run() -> None:
            store = self.store()
            try:
                await store.tidy(tombstone_ttl=86_400.0)
            finally:
                await store.stop()

        asyncio.run(run())
