"""Create the store in a bucket from settings. A module of its own, as it needs the extra `tusd-py[s3]`."""

from __future__ import annotations

from tusd_py.settings.model import Settings
from tusd_py.settings.name_template import split_template
from tusd_py.storage.s3.aiobotocore_store import Bucket, Encryption
from tusd_py.storage.s3.bucket import S3Options
from tusd_py.storage.s3.layout import Layout
from tusd_py.storage.s3.requests import ObjectStore
from tusd_py.storage.s3.store import S3Store
from tusd_py.telemetry.counters import Counters
from tusd_py.telemetry.object_store import ObjectStoreCounters


def bucket_of(settings: Settings) -> Bucket:
    """The bucket that the settings name, and how to use it."""
    path_style = {"on": True, "off": False}.get(
        settings.s3_path_style, bool(settings.s3_endpoint) or None
    )
    encryption = None
    if settings.s3_sse != "none":
        encryption = Encryption(settings.s3_sse, settings.s3_kms_key, settings.s3_bucket_key)
    return Bucket(
        settings.s3_bucket,
        endpoint=settings.s3_endpoint,
        public_endpoint=settings.s3_public_endpoint,
        region=settings.s3_region,
        path_style=path_style,
        encryption=encryption,
        acl=settings.s3_acl,
        storage_class=settings.s3_storage_class,
        cache_control=settings.s3_cache_control,
        tags=dict(tag.split("=", 1) for tag in settings.s3_tags),
        unsigned_bodies=settings.s3_disable_content_hashes,
        response_seconds=settings.s3_timeout,
        repeat_seconds=settings.s3_retry_time,
    )


def s3_store(settings: Settings, counters: Counters | None = None) -> S3Store:
    """The store of an instance whose uploads are in a bucket, not opened. counters: get those of its requests."""
    options = S3Options(
        bucket=settings.s3_bucket,
        layout=Layout(settings.s3_object_prefix, settings.s3_info_prefix),
        part_bytes=settings.s3_part_size,
        max_parts=settings.s3_max_parts,
        most_object_bytes=settings.s3_max_object_size,
        equal_parts=settings.s3_equal_parts,
        concurrent_parts=settings.s3_concurrent_part_uploads,
        spool_bytes=settings.s3_spool_size,
        spool_directory=None if settings.s3_spool_dir is None else str(settings.s3_spool_dir),
        flush_seconds=settings.s3_flush_interval,
        metadata_keys=settings.s3_object_metadata,
        allowed_locations=settings.s3_allowed_locations,
        finished_names="/".join(filter(None, split_template(settings.finished_dir)))
        if settings.finished_dir
        else "",
        keeps_finished=settings.finished_files == "keep",
    )
    objects = ObjectStore(bucket_of(settings))
    store = S3Store(objects, options)
    if counters is not None:
        counted = ObjectStoreCounters(lambda: store.spool.used, options.spool_bytes)
        counters.object_store = objects.observer = counted
    return store
