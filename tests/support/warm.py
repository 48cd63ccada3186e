"""Loads what a server with a bucket needs, in the process from which forked servers come."""

from tusd_py.cli import serve
from tusd_py.process import server
from tusd_py.service import bucket
from tusd_py.storage.s3 import aiobotocore_store

__all__ = ["aiobotocore_store", "bucket", "serve", "server"]

aiobotocore_store._descriptions().load_service_model("s3", "service-2")
