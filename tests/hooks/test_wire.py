"""tusd's format with plain values: valid responses, their effects, and refusal of all others."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tusd_hooks.wire import (
    Answer,
    MalformedAnswer,
    canonical,
    parse_answer,
    request_document,
)
from tusd_py.events.model import Event, EventType, Reject, RequestView, Stop, UploadView
from tusd_py.settings.model import Settings
from tusd_py.settings.types import WIRE_EVENTS

ROOT = Path("/srv/uploads")
REFUSALS = {
    EventType.PRE_CREATE: "RejectUpload",
    EventType.PRE_TERMINATE: "RejectTermination",
    EventType.PRE_ACCESS: "RejectAccess",
    EventType.POST_RECEIVE: "StopUpload",
}

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)
NAMES = st.sampled_from(
    [
        *("HTTPResponse", "StatusCode", "Body", "Header", "ChangeFileInfo", "ID", "MetaData"),
        *("RejectUpload", "RejectTermination", "RejectAccess", "StopUpload", "Storage", "Path"),
    ]
)
DOCUMENTS = st.recursive(
    JSON, lambda inner: st.dictionaries(NAMES | NAMES.map(str.lower), inner, max_size=6)
)


def test_the_events_that_leave_the_process_are_all_but_the_one_between_hooks() -> None:
    assert {*WIRE_EVENTS, "create-failed"} == {event_type.value for event_type in EventType}


# --- the answer -----------------------------------------------------------------------------------


@given(st.binary(max_size=200) | DOCUMENTS.map(lambda value: json.dumps(value).encode()))
def test_any_answer_is_understood_or_malformed(raw: bytes) -> None:
    with suppress(MalformedAnswer):
        answer = parse_answer(raw, ROOT)
        for event_type in EventType:
            with suppress(Reject, Stop):
                answer.outcome(event_type)


@pytest.mark.parametrize("raw", [b"{}", b"null", b' {"Unknown": [1]} ', b'{"HTTPResponse": null}'])
def test_whoever_has_nothing_to_say_changes_nothing(raw: bytes) -> None:
    assert parse_answer(raw, ROOT) == Answer()


def test_every_field() -> None:
    raw = json.dumps(
        {
            "HTTPResponse": {
                "StatusCode": 201,
                "Body": "ü",
                "Header": {"x-a": "ü", "Content-Length": "7", "CONNECTION": "close"},
            },
            "RejectUpload": True,
            "RejectTermination": True,
            "RejectAccess": True,
            "StopUpload": True,
            "ChangeFileInfo": {
                "ID": "a/b",
                "MetaData": {"k": "ü", "empty": None},
                "Storage": {"Path": "/srv/uploads/x/../y", "Other": "ignored"},
            },
        }
    )
    assert parse_answer(raw.encode(), ROOT) == Answer(
        status=201,
        body="ü",
        headers={"X-A": "Ã¼"},  # the bytes of UTF-8, as header fields carry them
        refuses=frozenset(REFUSALS),
        id="a/b",
        metadata={"k": "ü".encode(), "empty": b""},
        path="x/../y",
    )


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"", "empty"),
        (b" \n", "empty"),
        (b"\xff{}", "not UTF-8"),
        (b"\xef\xbb\xbf{}", "not JSON"),
        (b"{} {}", "not JSON"),
        (b"[" * 5000, "not JSON"),
        (b'{"a":' + b"9" * 5000 + b"}", "not JSON"),
        (b'{"a": NaN}', "NaN is no number"),
        (b'"text"', "the answer must be an object, not text"),
        (b"true", "the answer must be an object, not true or false"),
        (b'{"RejectUpload": true, "RejectUpload": false}', "a name twice"),
        (b'{"RejectUpload": true, "rejectUpload": false}', "RejectUpload stands twice"),
        (b'{"RejectUpload": 1}', "RejectUpload must be true or false, not a number"),
        (b'{"StopUpload": "true"}', "StopUpload must be true or false, not text"),
        (b'{"HTTPResponse": {"StatusCode": "400"}}', "HTTPResponse.StatusCode must be a whole"),
        (b'{"HTTPResponse": {"StatusCode": 400.5}}', "HTTPResponse.StatusCode must be a whole"),
        (b'{"HTTPResponse": {"StatusCode": true}}', "HTTPResponse.StatusCode must be a whole"),
        (b'{"HTTPResponse": {"StatusCode": 100}}', "from 200 to 599, not 100"),
        (b'{"HTTPResponse": {"StatusCode": 600}}', "from 200 to 599, not 600"),
        (b'{"HTTPResponse": {"StatusCode": -1}}', "from 200 to 599, not -1"),
        (b'{"HTTPResponse": {"Body": {}}}', "HTTPResponse.Body must be text, not an object"),
        (b'{"HTTPResponse": {"Body": "\\ud800"}}', "half of a surrogate pair"),
        (b'{"HTTPResponse": {"Header": ["a"]}}', "HTTPResponse.Header must be an object"),
        (b'{"HTTPResponse": {"Header": {"A": ["b"]}}}', "HTTPResponse.Header.'A' must be text"),
        (b'{"HTTPResponse": {"Header": {"A b": "c"}}}', "cannot name a header"),
        (b'{"HTTPResponse": {"Header": {"": "c"}}}', "cannot name a header"),
        (b'{"HTTPResponse": {"Header": {"A": "b\\r\\n"}}}', "control characters"),
        (b'{"HTTPResponse": {"Header": {"A": "\\u0000"}}}', "control characters"),
        (b'{"ChangeFileInfo": {"ID": 7}}', "ChangeFileInfo.ID must be text, not a number"),
        (b'{"ChangeFileInfo": {"MetaData": {"": "x"}}}', "keys are visible ASCII"),
        (b'{"ChangeFileInfo": {"MetaData": {"a,b": "x"}}}', "keys are visible ASCII"),
        ('{"ChangeFileInfo": {"MetaData": {"ä": "x"}}}'.encode(), "keys are visible ASCII"),
        (b'{"ChangeFileInfo": {"Storage": "x"}}', "ChangeFileInfo.Storage must be an object"),
        (
            b'{"ChangeFileInfo": {"Storage": {"Path": 1}}}',
            "ChangeFileInfo.Storage.Path must be text",
        ),
    ],
)
def test_what_is_malformed_is_named(raw: bytes, reason: str) -> None:
    with pytest.raises(MalformedAnswer) as caught:
        parse_answer(raw, ROOT)
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    ("event_type", "word"),
    list(REFUSALS.items()),
)
def test_each_event_has_its_own_word_for_no(event_type: EventType, word: str) -> None:
    answer = parse_answer(json.dumps({word: True}).encode(), ROOT)
    with pytest.raises((Reject, Stop)):
        answer.outcome(event_type)
    for other in set(EventType) - {event_type}:
        answer.outcome(other)


def test_what_may_not_be_touched_looks_like_what_is_not_there() -> None:
    with pytest.raises(Reject) as caught:
        Answer(refuses=[EventType.PRE_ACCESS]).outcome(EventType.PRE_ACCESS)
    assert caught.value.status == 404
    assert caught.value.code == "ERR_UPLOAD_NOT_FOUND"
    assert caught.value.body.startswith("ERR_UPLOAD_NOT_FOUND: ")


# --- the event ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "expected"),
    [("etag", "Etag"), ("x-request-id", "X-Request-Id"), ("www-3d-x", "Www-3d-X"), ("-a-", "-A-")],
)
def test_names_of_header_fields_are_written_as_in_go(name: str, expected: str) -> None:
    assert canonical(name) == expected


@given(
    st.dictionaries(st.text("ab", min_size=1), st.binary()),
    st.dictionaries(st.text("ab-", min_size=1), st.text(st.characters(max_codepoint=255))),
)
def test_any_event_is_told_in_utf_8(metadata: dict[str, bytes], headers: dict[str, str]) -> None:
    upload = UploadView("id", None, 3, metadata, parts=("p", "q"), location="sub/file")
    event = Event(EventType.POST_CREATE, upload, RequestView(headers=headers))
    told = json.loads(request_document(event, Settings(upload_dir=ROOT)).decode("utf-8"))["Event"]
    assert told["Upload"]["MetaData"].keys() == metadata.keys()
    assert told["Upload"]["PartialUploads"] == ["p", "q"]
    assert told["Upload"]["Storage"] == {
        "InfoPath": "/srv/uploads/id.info",
        "Path": "/srv/uploads/sub/file",
        "Type": "filestore",
    }
    assert all(len(values) == 1 for values in told["HTTPRequest"]["Header"].values())


def test_header_fields_in_utf_8_are_told_as_such() -> None:
    headers = {"x-a": "ü".encode().decode("latin-1"), "x-b": "\xfc"}
    event = Event(
        EventType.PRE_CREATE, UploadView("id", 1, 0, {}), RequestView("POST", headers=headers)
    )
    told = json.loads(request_document(event, Settings(upload_dir=ROOT)))["Event"]["HTTPRequest"][
        "Header"
    ]
    assert told == {"X-A": ["ü"], "X-B": ["\ufffd"]}
