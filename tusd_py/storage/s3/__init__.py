"""Uploads in a bucket of an S3 compatible object store."""
