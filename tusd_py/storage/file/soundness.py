"""Whether the bytes of an upload are what its record tells; asked in one place, whenever an upload is loaded or opened.

A finished upload has exactly as many bytes as its record says, an unfinished one no more. Anything else was done by somebody
else (a disk repaired, a backup restored in part, a file cut by hand), and must not be taken for what the client sent.
"""

from __future__ import annotations

import os
import stat

from tusd_py.storage.base import Upload, UploadDamaged


def check_bytes(upload: Upload, data: os.stat_result) -> None:
    """Raise UploadDamaged if the data file with the status `data` contradicts the record of `upload`."""
    length, size = upload.length, data.st_size
    problem = ""
    if not stat.S_ISREG(data.st_mode):
        problem = "there is something else in the place of its bytes than a file"
    elif upload.finished and length is not None and size != length:
        problem = f"it is finished with {length} bytes, but there are {size}"
    elif length is not None and size > length and not upload.is_cut:
        problem = f"its length is {length} bytes, but there are {size}"
    if problem:
        raise UploadDamaged(f"{upload.id} is damaged: {problem}", upload)
