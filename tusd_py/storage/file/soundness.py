"""Check of an upload's data file against its record, made whenever an upload is loaded or opened.

A finished upload has exactly as many bytes as its record says, an unfinished one no more. Anything else has an external cause
(a repaired disk, a partly restored backup, a file cut by hand), and must not be taken for what the client sent.
"""

from __future__ import annotations

import os
import stat

from tusd_py.storage.base import Upload, UploadDamaged, UploadNotFound


def check_bytes(upload: Upload, data: os.stat_result) -> None:
    """Raise UploadDamaged if the data file with the status `data` contradicts the record of `upload`."""
    length, size = upload.length, data.st_size
    problem = ""
    if not stat.S_ISREG(data.st_mode):
        problem = "its data is not a regular file"
    elif upload.finished and length is not None and size != length:
        problem = f"it is finished with {length} bytes, but there are {size}"
    elif length is not None and size > length and not upload.is_cut:
        problem = f"its length is {length} bytes, but there are {size}"
    if problem:
        raise UploadDamaged(f"{upload.id} is damaged: {problem}", upload)


def check_same(upload: Upload, data: os.stat_result) -> None:
    """Raise UploadNotFound if the open data file with the status `data` is not the one that `upload` was loaded from.

    Between the two the upload may have been removed, and another one been created with its id, perhaps somebody else's.
    """
    if max(data.st_mtime, upload.info.created_at) != upload.changed_at:
        raise UploadNotFound(f"{upload.id} was replaced by another upload meanwhile")
