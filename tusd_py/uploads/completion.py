"""When an upload is complete: at its length, as in tus, or once a request says so, as in Resumable Uploads for HTTP.

The request that is being carried out decides, so an upload that was begun by one protocol can be completed by the other.
`completes` is that of its command: True or False if it says whether its body is the rest of the upload, None for tus.
"""

from __future__ import annotations

from tusd_py.protocol import digests, errors
from tusd_py.protocol.errors import ProtocolError
from tusd_py.protocol.tus import Append
from tusd_py.storage.base import Upload


def check_open(upload: Upload, command: Append) -> None:
    """Raise a 400 for an append to a finished upload, unless it repeats the request that completed it.

    Also for a digest of the whole that contradicts the one which an earlier request announced. That one is verified.
    """
    repeats = command.completes and command.content.length in (0, None)
    if upload.finished and command.completes is not None and not repeats:
        raise errors.completed()
    known, given = (_digests(each) for each in (upload.info.repr_digest, command.repr_digest))
    if given and (known or upload.finished):
        # What cannot be compared is not verified any more.
        common = known.keys() & given.keys()
        if not common or any(known[each] != given[each] for each in common):
            raise errors.other_digest()


def _digests(text: str) -> dict[str, bytes]:
    """The digests of a record or a command by algorithm."""
    found = digests.each_of(text, digests.REPRESENTATION) if text else ()
    return {each.algorithm: each.digest for each in found}


def before_body(upload: Upload, command: Append) -> Upload:
    """The upload as it is recorded before the body of an append is received.

    The body may fill its length without completing it, or complete it with a digest of the whole, which the finish verifies.
    """
    if command.completes is False and not upload.info.awaits_completion:
        upload = upload.with_info(awaits_completion=True)
    if command.repr_digest and not upload.info.repr_digest:
        upload = upload.with_info(repr_digest=command.repr_digest)
    return upload


def after_body(upload: Upload, completes: bool | None) -> Upload:
    """The upload after a body was received in full. Raises a 400 if it is the last one and the length is not reached."""
    if completes and upload.length is None:
        return upload.with_info(length=upload.offset)
    if completes and not upload.fills_length:
        raise errors.inconsistent_length("the upload ends before its length")
    return upload


def ends_upload(upload: Upload, command: Append, problem: ProtocolError) -> bool:
    """Whether an append was refused for a reason that leaves the upload of no use.

    That is a whole with another digest than it should have, and bytes past the length ("Upload Append").
    """
    if problem.code == errors.digest_mismatch.code:
        return True
    if command.completes is None or upload.finished or upload.length is None:
        return False
    size = command.content.length
    return problem.code == "ERR_UPLOAD_SIZE_EXCEEDED" or (
        size is not None and command.offset + size > upload.length
    )
