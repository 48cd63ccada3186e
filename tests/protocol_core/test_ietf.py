"""Resumable Uploads for HTTP with plain values: requests of every version to commands, results to header fields."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.protocol_core.attempts import attempt
from tusd_py.protocol import errors, ietf, tus
from tusd_py.protocol.errors import ProtocolError
from tusd_py.protocol.headers import media_type
from tusd_py.protocol.ietf import UNVERSIONED, VERSIONS, Limits, Status, Version
from tusd_py.protocol.tus import Append, Creation

PARTIAL = {"content-type": ietf.MEDIA_TYPE}
ALL = [*VERSIONS.values(), UNVERSIONED]
NAMES = [str(version.number) for version in ALL]
each_version = pytest.mark.parametrize("version", ALL, ids=NAMES)
NO_LIMITS = Limits()


def complete(version: Version, *, value: bool) -> dict[str, str]:
    """The request's field that says whether the body is the rest of the upload."""
    if version.inverted:
        return {"upload-incomplete": "?0" if value else "?1"}
    return {"upload-complete": "?1" if value else "?0"}


def creation(headers: Mapping[str, str], version: Version = UNVERSIONED) -> Creation:
    return ietf.parse_creation(headers, version)


def append(headers: Mapping[str, str], version: Version = UNVERSIONED) -> Append:
    return ietf.parse_append({**PARTIAL, **headers}, version)


def refusal(headers: Mapping[str, str], version: Version = UNVERSIONED) -> ProtocolError:
    """The refusal of a PATCH, or of a creation if there is no offset."""
    parse = append if "upload-offset" in headers else creation
    with pytest.raises(ProtocolError) as raised:
        parse(headers, version)
    return raised.value


@each_version
def test_R1_R8_a_creation_says_whether_its_body_is_the_whole(version: Version) -> None:
    whole = creation({**complete(version, value=True), "content-length": "5"}, version)
    assert (whole.length, whole.completes) == (5, True)
    part = creation({**complete(version, value=False), "content-length": "5"}, version)
    assert (part.length, part.completes) == (None, False)
    empty = creation({**complete(version, value=True), "content-length": "0"}, version)
    assert (empty.length, empty.content, empty.completes) == (0, None, True)
    careful = creation({**complete(version, value=False), "content-length": "0"}, version)
    assert (careful.length, careful.content, careful.completes) == (None, None, False)


@pytest.mark.parametrize("value", ["1", "true", "?2", "", "?1, ?1", '"?1"', "?01"])
def test_a_field_of_another_type_is_ignored(value: str) -> None:
    assert refusal({"upload-complete": value}).code == "ERR_INVALID_UPLOAD_COMPLETE"


def test_parameters_of_an_item_are_ignored() -> None:
    assert creation({"upload-complete": "?0;a=1", "upload-length": "5;b"}).length == 5


@pytest.mark.parametrize("value", ["-1", "1.0", "?1", "5, 5", "\u0665", "1" * 16, "0x5"])
def test_R3_a_length_that_is_no_integer_is_ignored(value: str) -> None:
    assert creation({"upload-complete": "?0", "upload-length": value}).length is None


@pytest.mark.parametrize(
    "headers",
    [
        {"upload-complete": "?1", "content-length": "5", "upload-length": "6"},
        {"upload-complete": "?1", "content-length": "0", "upload-length": "6"},
        {"upload-complete": "?0", "content-length": "7", "upload-length": "6"},
        {
            "upload-complete": "?1",
            "content-length": "5",
            "upload-length": "6",
            "upload-offset": "2",
        },
    ],
)
def test_R3_lengths_that_contradict_each_other(headers: dict[str, str]) -> None:
    problem = ietf.problem_of(refusal(headers), headers)
    assert problem.status == 400
    assert problem.members["type"] == (
        "https://iana.org/assignments/http-problem-types#inconsistent-upload-length"
    )


def test_R3_the_length_of_an_append_that_completes() -> None:
    done = append({"upload-complete": "?1", "upload-offset": "10", "content-length": "5"})
    assert (done.offset, done.length, done.completes) == (10, 15, True)
    stated = append({"upload-complete": "?0", "upload-offset": "10", "upload-length": "99"})
    assert (stated.length, stated.completes) == (99, False)
    chunked = append({"upload-complete": "?1", "upload-offset": "10"})
    assert (chunked.length, chunked.content.length) == (None, None)


def test_R4_R5_limits() -> None:
    limits = Limits(max_size=100, max_age=60)
    assert ietf.limit_header(VERSIONS[9], limits) == {"Upload-Limit": "max-size=100, max-age=60"}
    assert ietf.limit_header(VERSIONS[6], limits) == {"Upload-Limit": "max-size=100, expires=60"}
    assert ietf.limit_header(VERSIONS[5], limits) == {}
    assert ietf.options_headers(NO_LIMITS)["Upload-Limit"] == "min-size=0"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ('inline; filename="a b.txt"', "a b.txt"),
        ("attachment; filename=a.txt", "a.txt"),
        ("inline; filename=\"x\"; filename*=UTF-8''na%C3%AFve.txt", "naïve.txt"),
        ("inline; filename*=iso-8859-1''na%EFve.txt; filename=x", "naïve.txt"),
        ('inline; filename="na\xc3\xafve.txt"', "naïve.txt"),
        ('inline; filename="../../etc/passwd"', "passwd"),
        ('inline; filename="C:\\\\a\\\\b.txt"', "b.txt"),
        ("inline; filename*=bogus''a; filename=b", "b"),
        ("inline; filename*=UTF-8''%FF; filename=b", "b"),
        ("inline; filename*=UTF-8'en'a%20b; filename=c", "a b"),
        ("inline; filename*=\"UTF-8''a\"; filename=c", "a"),
        ('inline; x="; filename=a"; FileName = "b;\\"c\\".txt" ; y=1', 'b;"c".txt'),
        ('inline; filename="C:\\a\\b.txt"', "b.txt"),
        ("inline; filename*=UTF-8''" + "%41" * 1000, "A" * 1000),
    ],
)
def test_R10_the_name_of_the_file(given: str, expected: str) -> None:
    made = creation({"upload-complete": "?1", "content-disposition": given})
    assert made.metadata == {"filename": expected.encode()}


@pytest.mark.parametrize(
    "parameters",
    [
        "filename*=UTF-8''a.txt; filename*0=b",
        "filename*0=b; filename*=UTF-8''a.txt",
        f"filename*{'9' * 4400}=b; filename=a.txt",
        "filename*=utf-8; filename*=; filename*; filename*=''; filename=a.txt",
        'filename="b"c; filename=a.txt',
        'filename=b"c; filename=d"; filename=a.txt',
        f"filename*=UTF-8''{'b' * 5000}; filename={'b' * 5000}; filename=a.txt",
        '; =; =b; ;;filename=a.txt; x="y',
        "filename*=UTF-8''\u0130; filename=a.txt",
    ],
)
def test_R10_parameters_that_are_malformed_or_long_are_ignored(parameters: str) -> None:
    """Those of the first kinds were a 500: parts of a name (RFC 2231) were put together with a whole one."""
    field = {"upload-complete": "?1", "content-disposition": f"attachment; {parameters}"}
    assert creation(field).metadata == {"filename": b"a.txt"}


def test_R10_a_file_name_that_is_never_closed() -> None:
    field = {"upload-complete": "?1", "content-disposition": 'attachment; filename="a.txt; b'}
    assert creation(field).metadata == {}


def test_R10_the_media_type_and_metadata_of_tus() -> None:
    both = {
        "upload-complete": "?0",
        "content-disposition": 'inline; filename="a.txt"',
        "content-type": "text/plain; charset=utf-8",
    }
    assert creation(both).metadata == {
        "filename": b"a.txt",
        "filetype": b"text/plain; charset=utf-8",
    }
    assert (
        creation(both).metadata_header
        == "filename YS50eHQ=,filetype dGV4dC9wbGFpbjsgY2hhcnNldD11dGYtOA=="
    )
    own = creation({**both, "upload-metadata": "filename Yg==,filetype Yw=="})
    assert (own.metadata["filename"], own.metadata_header) == (b"b", "filename Yg==,filetype Yw==")
    assert creation({"upload-complete": "?0", **PARTIAL}).metadata == {}
    named = ietf.parse_creation({"upload-complete": "?1"}, UNVERSIONED, name="c")
    assert named.metadata == {"filename": b"c"}


def test_R21_the_digest_of_the_whole_counts_where_an_append_completes_it() -> None:
    """Else it may be meant for the body (RFC 9530, section 3.1)."""
    given = {"upload-offset": "0", "repr-digest": f"sha-256=:{'A' * 43}=:", **PARTIAL}
    assert append({**given, "upload-complete": "?1"}).repr_digest == given["repr-digest"]
    assert append({**given, "upload-complete": "?0"}).repr_digest == ""


def test_R21_digest_fields_are_bounded() -> None:
    """Parsing a structured field of 60 kB takes a tenth of a second."""
    members = ", ".join(f"a{number}=:AAAA:" for number in range(300))
    for name in ("repr-digest", "content-digest"):
        with pytest.raises(ProtocolError) as refusal:
            creation({"upload-complete": "?0", name: members})
        assert (refusal.value.status, refusal.value.code) == (400, "ERR_INVALID_DIGEST")
    wanted = creation({"upload-complete": "?0", "want-repr-digest": f"sha-256=1, {members}"})
    assert wanted.wanted_digest == ""


def test_items_are_bounded() -> None:
    """Longer ones are ignored, as any value that is none of the field's type is."""
    assert ietf.provided_offset({"upload-offset": "5" + ";a" * 100}) == 5
    assert ietf.provided_offset({"upload-offset": "5" + ";a" * 1000}) is None


@each_version
def test_R12_responses_carry_the_version_of_the_request(version: Version) -> None:
    expected = None if version.number is None else str(version.number)
    for fields in (
        ietf.announcement(version, "/files/a", NO_LIMITS),
        ietf.progress(version, 5),
        ietf.result_headers(version, offset=5, complete=False, limits=NO_LIMITS),
    ):
        assert fields.get("Upload-Draft-Interop-Version") == expected
    assert "Location" not in ietf.progress(version, 5)


@each_version
def test_R13_the_response_to_a_request_for_the_offset(version: Version) -> None:
    fields = ietf.status_headers(version, Status(5, 10, complete=False, limits=Limits(max_age=9)))
    assert fields["Upload-Offset"] == "5"
    assert fields["Upload-Length"] == "10"
    assert fields["Cache-Control"] == "no-store"
    assert fields.get("Upload-Complete") == (None if version.inverted else "?0")
    assert fields.get("Upload-Incomplete") == ("?1" if version.inverted else None)
    assert ("Upload-Limit" in fields) is bool(version.lifetime)


def test_R13_fields_that_a_request_for_the_offset_must_not_have() -> None:
    ietf.check_retrieval({"upload-draft-interop-version": "9"})
    for name in ("upload-offset", "upload-complete", "upload-incomplete"):
        with pytest.raises(ProtocolError, match="request for the offset"):
            ietf.check_retrieval({name: "5"})


@each_version
def test_R14_what_an_append_needs(version: Version) -> None:
    fields = {**complete(version, value=False), "upload-offset": "3", "content-length": "5"}
    for kind in ("application/offset+octet-stream", "text/plain", ""):
        outcome = attempt(ietf.parse_append, {**fields, "content-type": kind}, version)
        if version.has_media_type:
            assert isinstance(outcome, ProtocolError)
            assert outcome.status == 415
        else:
            assert isinstance(outcome, Append)
    without = attempt(ietf.parse_append, {**fields, **PARTIAL, "upload-offset": "x"}, version)
    assert isinstance(without, ProtocolError)
    assert without.code == "ERR_INVALID_OFFSET"


def test_R14_R22_completeness_that_is_missing() -> None:
    fields = {"upload-offset": "3", "content-length": "5"}
    assert append(fields, VERSIONS[3]).completes is True
    for number in range(4, 10):
        assert refusal(fields, VERSIONS[number]).code == "ERR_INVALID_UPLOAD_COMPLETE"
    # A creation always says it.
    assert refusal({"content-length": "5"}, VERSIONS[3]).code == "ERR_INVALID_UPLOAD_COMPLETE"


def test_R14_R20_the_refusal_of_another_offset() -> None:
    problem = ietf.problem_of(errors.mismatched_offset(12), {"upload-offset": "25"})
    assert problem.status == 409
    assert problem.members["type"] == (
        "https://iana.org/assignments/http-problem-types#mismatching-upload-offset"
    )
    assert (problem.members["expected-offset"], problem.members["provided-offset"]) == (12, 25)


@each_version
def test_R15_completeness_in_responses(version: Version) -> None:
    for value in (True, False):
        fields = ietf.result_headers(version, offset=5, complete=value, limits=NO_LIMITS)
        assert fields["Upload-Offset"] == "5"
        if version.inverted:
            assert fields["Upload-Incomplete"] == ("?0" if value else "?1")
        else:
            assert fields["Upload-Complete"] == ("?1" if value else "?0")


def test_R22_the_table() -> None:
    assert [each.number for each in VERSIONS.values() if each.inverted] == [3]
    assert [each.number for each in VERSIONS.values() if each.has_media_type] == [6, 7, 8, 9]
    assert [each.number for each in VERSIONS.values() if each.has_progress] == [5, 6, 7, 8, 9]
    assert [each.number for each in VERSIONS.values() if each.appended == 201] == [3, 4, 5, 6]


@pytest.mark.parametrize(
    ("method", "headers", "expected"),
    [
        ("PATCH", {"tus-resumable": "1.0.0", "upload-complete": "?1"}, None),
        ("POST", {"upload-draft-interop-version": "3"}, VERSIONS[3]),
        ("HEAD", {"upload-draft-interop-version": "8"}, VERSIONS[8]),
        ("HEAD", {"upload-draft-interop-version": "10"}, UNVERSIONED),
        ("HEAD", {"upload-draft-interop-version": "x"}, UNVERSIONED),
        ("PUT", {"upload-complete": "?1"}, UNVERSIONED),
        ("POST", {"upload-incomplete": "?0"}, Version(None, True, False, False, "", 201)),
        ("PATCH", PARTIAL, UNVERSIONED),
        ("PATCH", {"content-type": "application/offset+octet-stream"}, None),
        ("POST", PARTIAL, None),
        ("HEAD", {}, None),
        ("OPTIONS", {"upload-draft-interop-version": "8"}, None),
    ],
)
def test_R23_which_protocol_a_request_speaks(
    method: str, headers: dict[str, str], expected: Version | None
) -> None:
    assert ietf.version_of(method, headers) == expected


FIELDS = [
    "tus-resumable",
    "upload-draft-interop-version",
    "upload-complete",
    "upload-incomplete",
    "upload-length",
    "upload-defer-length",
    "upload-offset",
    "upload-metadata",
    "upload-concat",
    "upload-checksum",
    "content-type",
    "content-length",
    "content-disposition",
    "transfer-encoding",
]
PLAUSIBLE = [
    "", "0", "5", "-1", "1.0.0", "?0", "?1", "?1;a", "?", "3", "9", "10", "999999999999999",
    "a YQ==", "a,a", "partial", ietf.MEDIA_TYPE, tus.MEDIA_TYPE, "text/plain", "chunked",
    'inline; filename="a"', "inline; filename*=UTF-8''%C3%A9", "inline; filename*0*=utf-8''%; filename*1=b",
    "sha1 qvTGHdzF6KLavt4PO0gs2a6pQ00=",
]  # fmt: skip
latin = st.text(alphabet=[chr(code) for code in range(1, 256)], max_size=20)
fields = st.dictionaries(st.sampled_from(FIELDS), st.sampled_from(PLAUSIBLE) | latin)
methods = st.sampled_from(["POST", "PUT", "PATCH", "HEAD", "GET", "DELETE", "OPTIONS"])


@given(methods, fields, st.sampled_from(ALL))
def test_anything_is_parsed_or_refused(
    method: str, headers: dict[str, str], version: Version
) -> None:
    for parse in (ietf.parse_creation, ietf.parse_append):
        outcome = attempt(parse, headers, version)
        if isinstance(outcome, ProtocolError):
            assert 400 <= outcome.status < 500
            problem = ietf.problem_of(outcome, headers)
            assert 400 <= problem.status < 500
        elif isinstance(outcome, Append):
            assert outcome.offset >= 0
            assert outcome.completes is not None
        else:
            assert isinstance(outcome, Creation)
            assert outcome.completes is not None
            assert outcome.length is None or outcome.length >= 0
            assert metadata_reads_back(outcome)


def metadata_reads_back(made: Creation) -> bool:
    """True if the recorded field has the same pairs, for keys that can be written."""
    return (
        dict(made.metadata)
        == tus.parse_creation(
            {"upload-metadata": made.metadata_header, "upload-length": "0"}, max_parts=1
        ).metadata
    )


@given(methods, fields)
def test_R23_a_request_is_never_taken_for_the_other_protocols(
    method: str, headers: dict[str, str]
) -> None:
    version = ietf.version_of(method, headers)
    marked = {"upload-draft-interop-version", "upload-complete", "upload-incomplete"} & set(headers)
    if "tus-resumable" in headers or method == "OPTIONS":
        assert version is None
    elif marked or (method == "PATCH" and media_type(headers) == ietf.MEDIA_TYPE):
        assert version is not None
    else:
        assert version is None
        if method in ("POST", "PATCH"):
            with pytest.raises(ProtocolError) as raised:
                tus.check_version(method, headers)
            assert raised.value.status == 412
