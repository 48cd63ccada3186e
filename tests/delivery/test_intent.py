"""The record of an event: all that hooks may get, no secrets, and a reproducible id."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tusd_py.events import outbox_record
from tusd_py.events.model import DELIVERED, Event, EventType, RequestView, UploadView
from tusd_py.events.outbox_record import MalformedOutboxRecord, OutboxRecord
from tusd_py.storage.base import UploadInfo

TEXT = st.text(st.characters(codec="utf-8"))
UPLOADS = st.builds(
    UploadView,
    id=TEXT,
    length=st.none() | st.integers(0),
    offset=st.integers(0),
    metadata=st.dictionaries(TEXT, st.binary()),
    is_partial=st.booleans(),
    is_final=st.booleans(),
    parts=st.lists(TEXT).map(tuple),
    owner=TEXT,
    location=st.none() | TEXT,
)
REQUESTS = st.builds(
    RequestView,
    method=TEXT,
    path=TEXT,
    client=TEXT,
    headers=st.dictionaries(TEXT, TEXT),
    collection_url=TEXT,
)


@given(
    st.builds(
        OutboxRecord,
        event=st.builds(
            Event,
            type=st.sampled_from(sorted(DELIVERED)),
            upload=UPLOADS,
            request=REQUESTS,
            id=TEXT,
        ),
        created_at=st.floats(0, 1e10),
        hooks=st.lists(TEXT).map(tuple),
        not_before=st.floats(0, 1e10),
        problem=TEXT,
    )
)
def test_it_is_read_as_it_was_written(record: OutboxRecord) -> None:
    assert outbox_record.parse(outbox_record.serialize(record)) == record
    begun = record.next_attempt().next_attempt()
    assert outbox_record.parse(outbox_record.serialize(begun)) == begun
    assert (begun.attempts, begun.event.attempt, begun.happened) == (2, 2, True)


@pytest.mark.parametrize("attempts", [0, 1])
def test_the_version_before_did_not_write_whether_it_happened(attempts: int) -> None:
    event = Event(EventType.POST_FINISH, UploadView("x", 1, 1, {}), RequestView())
    record = OutboxRecord(event, 1.0, ("a",), attempts)
    document = json.loads(outbox_record.serialize(record))
    del document["happened"]
    assert outbox_record.parse(json.dumps(document).encode()).happened == (attempts > 0)


@pytest.mark.parametrize("content", [b"", b"\xff", b"[]", b"{}", b"null", b'{"id": "a"}'])
def test_what_is_none_is_told(content: bytes) -> None:
    with pytest.raises(MalformedOutboxRecord):
        outbox_record.parse(content)


def test_only_what_is_delivered_is_read() -> None:
    event = Event(EventType.POST_FINISH, UploadView("x", 1, 1, {}), RequestView())
    document = json.loads(outbox_record.serialize(OutboxRecord(event, 1.0, ("a",))))
    with pytest.raises(MalformedOutboxRecord):
        outbox_record.parse(json.dumps({**document, "type": "pre-create"}).encode())


def test_secrets_are_left_out() -> None:
    kept = {"host": "a", "user-agent": "b", "tus-resumable": "1.0.0", "x-project": "7"}
    secret = dict.fromkeys(
        (
            *("authorization", "proxy-authorization", "cookie", "x-api-key", "upload-token"),
            *("x-csrf-token", "x-amz-security-token", "x-session-id", "apikey", "referer"),
            *("x-client-secret", "x-password", "x-auth", "signature"),
        ),
        "hush",
    )
    request = RequestView("PATCH", "/files/x?token=hush", "10.0.0.1:1", {**kept, **secret}, "u/")
    safe = outbox_record.without_secrets(request)
    assert "hush" not in repr(safe)
    assert safe == RequestView("PATCH", "/files/x", "10.0.0.1:1", kept, "u/")


def test_the_id_is_that_of_one_thing_that_happens_once() -> None:
    info = UploadInfo("x", 1, created_at=1.25)
    ids = {
        outbox_record.id_of(event_type, each)
        for event_type in DELIVERED
        for each in (info, info._replace(id="y"), info._replace(created_at=1.5))
    }
    assert len(ids) == 12
    again = info._replace(finished_at=3.0, length=2)
    assert outbox_record.id_of(EventType.POST_FINISH, again) == outbox_record.id_of(
        EventType.POST_FINISH, info
    )
