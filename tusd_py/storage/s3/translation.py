"""Translation of an object store's errors into those of a store of uploads."""

from __future__ import annotations

from tusd_py.storage.base import StorageError, StorageUnavailable
from tusd_py.storage.s3.object_store import (
    ObjectStoreError,
    StoreMisconfigured,
    StoreUnavailable,
)


class translated:
    """`with translated(what):` raises an ObjectStoreError as the StorageError that it means. what: the operation."""

    __slots__ = ("_what",)

    def __init__(self, what: str) -> None:
        self._what = what

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, problem: BaseException | None, _trace: object) -> None:
        if isinstance(problem, ObjectStoreError):
            raise storage_error(problem, self._what) from problem


def storage_error(problem: ObjectStoreError, what: str) -> StorageError:
    """Return what an error means for an upload."""
    # What the operator has to mend, a clock or credentials that have expired, is no fault of the upload either.
    passes = isinstance(problem, StoreUnavailable | StoreMisconfigured)
    kind = StorageUnavailable if passes else StorageError
    return kind(f"{what}: {problem}")
