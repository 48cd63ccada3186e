"""A resumable upload server: tus 1.0.0 with every extension, for files that matter."""

__version__ = "0.1.0"
