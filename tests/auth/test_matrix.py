"""The matrix of permissions: every kind of token with every request, against a real server, and what refusals disclose."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from tests.auth.people import GRACE, TTL, access, bearer, forged, upload_token
from tests.auth.people import claims as good_claims
from tests.support.server import ServerProcess
from tests.support.tus import Tus, id_of, metadata, path_of
from tests.support.wire import Response
from tusd_py.web.progress import MEDIA_TYPE

CONTENT = b"a study that is nobody else's business"
SECRETS = ("Upload-Offset", "Upload-Length", "Upload-Metadata", "Location", "Upload-Token")
REFRESH, REVOKE = "/auth/refresh-upload-token", "/auth/revoke"


@dataclass(frozen=True)
class Target:
    """An upload of Alice's, and another one of hers."""

    path: str
    other: str

    @property
    def id(self) -> str:
        return id_of(self.path)


ADMIN = "uploads:admin"
PEOPLE: dict[str, Callable[[Target], dict[str, str]]] = {
    "nobody": lambda _: {},
    "wrong signature": lambda _: bearer(
        forged({"alg": "HS256"}, good_claims(), b"another secret of more than 32 bytes")
    ),
    "expired": lambda _: bearer(access(exp=int(time.time()) - 60)),
    "other owner": lambda _: bearer(access("bob")),
    "owner without scope": lambda _: bearer(access(scope="profile")),
    "owner": lambda _: bearer(access()),
    "upload token": lambda target: bearer(upload_token(target.id)),
    "upload token of another": lambda target: bearer(upload_token(id_of(target.other))),
    "upload token in grace": lambda target: bearer(upload_token(target.id, age=TTL + 5)),
    "upload token beyond grace": lambda target: bearer(
        upload_token(target.id, age=TTL + GRACE + 5)
    ),
    "upload token revoked": lambda target: bearer(upload_token(target.id)),
    "admin": lambda _: bearer(access("root", ADMIN)),
}

# In the order of PEOPLE.
EXPECTED: dict[str, tuple[int, ...]] = {
    "POST": (401, 401, 401, 201, 403, 201, 403, 403, 401, 401, 401, 201),
    "POST final": (401, 401, 401, 404, 403, 201, 201, 403, 401, 401, 401, 201),
    "HEAD": (401, 401, 401, 404, 403, 200, 200, 404, 401, 401, 401, 200),
    "GET progress": (401, 401, 401, 404, 403, 200, 200, 404, 401, 401, 401, 200),
    "PATCH": (401, 401, 401, 404, 403, 204, 204, 404, 401, 401, 401, 204),
    "GET": (401, 401, 401, 404, 403, 200, 403, 404, 401, 401, 401, 200),
    "DELETE": (401, 401, 401, 404, 403, 204, 204, 404, 401, 401, 401, 204),
    "refresh": (401, 401, 401, 404, 403, 200, 200, 404, 200, 401, 401, 200),
    "revoke": (401, 401, 401, 404, 403, 204, 403, 404, 401, 401, 401, 204),
    "OPTIONS": (204,) * 12,
}
CELLS = [
    pytest.param(who, what, status, id=f"{what}-{who}")
    for what, statuses in EXPECTED.items()
    for who, status in zip(PEOPLE, statuses, strict=True)
]


def made(tus: Tus, length: int, body: bytes = b"", **headers: str) -> str:
    """The path of a new upload of Alice's."""
    extra = {**bearer(access()), "Upload-Metadata": metadata(filename="study.dcm"), **headers}
    response = tus.create(length, headers=extra, body=body or None)
    assert response.status == 201, response
    return path_of(response["Location"])


def target_for(tus: Tus, what: str) -> Target:
    other = made(tus, 10)
    if what == "POST final":
        return Target(made(tus, 5, b"12345", **{"Upload-Concat": "partial"}), other)
    if what == "GET":
        return Target(made(tus, len(CONTENT), CONTENT), other)
    return Target(made(tus, 10, b"01234"), other)


def asked(tus: Tus, what: str, target: Target, headers: dict[str, str]) -> Response:
    """The answer to one request."""
    tus_headers = {"Tus-Resumable": "1.0.0", **headers}
    document = json.dumps({"upload_id": target.id}).encode()
    match what:
        case "POST":
            return tus.create(10, body=b"01234", headers=headers)
        case "POST final":
            final = f"final;{tus.server.url}{target.id}"
            return tus.create(headers={**headers, "Upload-Concat": final})
        case "PATCH":
            return tus.patch(target.path, 5, b"56789", headers)
        case "GET progress":
            return tus.get(target.path, {**headers, "Accept": MEDIA_TYPE})
        case "refresh":
            return tus.request("POST", REFRESH, headers, document)
        case "revoke":
            return tus.request("POST", REVOKE, headers, document)
        case _:
            return tus.request(what, target.path, tus_headers)


@pytest.mark.parametrize(("who", "what", "status"), CELLS)
def test_who_may_do_what(
    tus: Tus, guarded: ServerProcess, who: str, what: str, status: int
) -> None:
    target = target_for(tus, what)
    headers = PEOPLE[who](target)
    if who == "upload token revoked":
        body = json.dumps({"upload_id": target.id}).encode()
        assert tus.request("POST", REVOKE, bearer(access()), body).status == 204
    before = {path: path.read_bytes() for path in guarded.upload_dir.iterdir() if path.is_file()}
    response = asked(tus, what, target, headers)

    assert response.status == status, response
    if status < 400:
        return
    after = {path: path.read_bytes() for path in guarded.upload_dir.iterdir() if path.is_file()}
    assert before == after
    assert not [name for name in SECRETS if name in response]
    assert CONTENT not in response.body
    assert b"study" not in response.body
    if status == 401:
        assert response["WWW-Authenticate"].startswith('Bearer realm="uploads"')
        assert ("error=" in response["WWW-Authenticate"]) == (who != "nobody")
    if status == 403:
        assert 'error="insufficient_scope"' in response["WWW-Authenticate"]


@pytest.mark.parametrize(
    "what", ["HEAD", "GET progress", "PATCH", "GET", "DELETE", "refresh", "revoke"]
)
def test_someone_elses_upload_looks_like_none(tus: Tus, what: str) -> None:
    target = target_for(tus, what)
    none = Target(f"{tus.collection}{'0' * 32}", target.other)
    strangers, nobodys = (asked(tus, what, each, bearer(access("bob"))) for each in (target, none))
    assert strangers.status == nobodys.status == 404
    assert strangers.body == nobodys.body
    assert _fixed(strangers) == _fixed(nobodys)


def test_a_removed_upload_is_gone_for_those_who_knew_it_alone(tus: Tus) -> None:
    path = made(tus, 10)
    token = upload_token(id_of(path))
    assert tus.delete(path, bearer(token)).status == 204
    assert tus.head(path, bearer(token)).status == 410
    assert tus.head(path, bearer(access("root", ADMIN))).status == 410
    assert tus.head(path, bearer(access("bob"))).status == 404


def test_a_404_takes_the_same_time_for_either_reason(tus: Tus) -> None:
    theirs, none = made(tus, 10), f"{tus.collection}{'0' * 32}"
    headers = bearer(access("bob"))
    quickest = dict.fromkeys((theirs, none), 60.0)
    # Whatever else the machine does only makes it slower: asked often enough, it is seen as it is.
    for number in range(300):
        for path in quickest:
            quickest[path] = min(quickest[path], _seconds(tus, path, headers))
        if number >= 15 and abs(quickest[theirs] - quickest[none]) < 0.005:
            break
    # Each is sent at a step of 20 ms, whatever it took to find out, as far as the timers of the loop go.
    assert min(quickest.values()) >= 0.018
    assert abs(quickest[theirs] - quickest[none]) < 0.005


NOBODY: dict[str, str] = {}
BOB = bearer(access("bob"))
NO_SCOPE = bearer(access(scope="profile"))


@pytest.mark.parametrize(
    ("method", "where", "who", "status"),
    [
        ("PATCH", "upload", NOBODY, 401),
        ("PATCH", "upload", BOB, 404),
        ("PATCH", "upload", NO_SCOPE, 403),
        ("POST", "upload", BOB, 404),  # a PATCH by X-HTTP-Method-Override
        ("POST", "collection", NOBODY, 401),
        ("POST", "collection", NO_SCOPE, 403),
        ("POST", REFRESH, NOBODY, 401),
        ("POST", REVOKE, NOBODY, 401),
        ("DELETE", "upload", NOBODY, 401),
        ("GET", "upload", BOB, 404),
    ],
)
def test_a_refusal_comes_before_the_body(
    tus: Tus, method: str, where: str, who: dict[str, str], status: int
) -> None:
    path = made(tus, 10_000_000)
    headers = {
        **tus.patch_headers(0, who),
        "Content-Length": "10000000",
        "Expect": "100-continue",
    }
    if method == "POST" and where == "upload":
        headers["X-HTTP-Method-Override"] = "PATCH"
    if where == "collection":
        headers["Upload-Length"] = "10000000"
        del headers["Upload-Offset"]
    target = {"upload": path, "collection": tus.collection}.get(where, where)
    with tus.connect() as connection:
        connection.send_head(method, target, headers)
        response = connection.read_response()
    assert response.status == status
    assert not response.interim


def test_every_part_of_a_final_must_be_ones_own(tus: Tus) -> None:
    partial = {"Upload-Concat": "partial"}
    mine = [made(tus, 1, b"x", **partial) for _ in range(2)]
    bobs = path_of(
        tus.create(1, body=b"y", headers={**bearer(access("bob")), **partial})["Location"]
    )
    for parts in ([*mine, bobs], [bobs, *mine]):
        headers = {**bearer(access()), "Upload-Concat": f"final;{' '.join(parts)}"}
        assert tus.create(headers=headers).status == 404
    # The token of a part stands for its owner, where the access token is another's or has run out.
    shown = {"Upload-Token": upload_token(id_of(bobs), "bob")}
    joined = {**bearer(access()), **shown, "Upload-Concat": f"final;{' '.join([*mine, bobs])}"}
    assert tus.create(headers=joined).status == 201
    tokens = ", ".join(upload_token(id_of(part)) for part in mine)
    alone = {"Upload-Token": tokens, "Upload-Concat": f"final;{' '.join(mine)}"}
    response = tus.create(headers=alone)
    assert response.status == 201
    assert tus.get(path_of(response["Location"]), bearer(access())).body == b"xx"


def test_a_preflight_needs_no_token_and_allows_those_headers(tus: Tus) -> None:
    wanted = {
        "Origin": "https://hospital.example",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization, upload-token",
    }
    for path in (tus.collection, REFRESH, REVOKE):
        response = tus.options(path, wanted)
        assert response.status == 204
        allowed = response["Access-Control-Allow-Headers"].lower()
        assert "authorization" in allowed
        assert "upload-token" in allowed
    origin = {"Origin": "https://hospital.example", **bearer(access())}
    exposed = tus.create(5, headers=origin)["Access-Control-Expose-Headers"].lower()
    assert "upload-token," in exposed
    assert "upload-token-expires" in exposed


def test_tokens_are_neither_logged_nor_counted_nor_quoted(tus: Tus, guarded: ServerProcess) -> None:
    shown = [access(), access("bob"), f"{access()}x", upload_token("a"), "no.token.at-all"]
    path = made(tus, 5)
    bodies = [tus.head(path, bearer(token)).body for token in shown]
    bodies += [tus.get(f"{path}?token=1", bearer(token)).body for token in shown]
    said = guarded.log() + tus.get("/metrics").text + b"".join(bodies).decode()
    assert not [token for token in shown if token in said or token.split(".")[-1][:20] in said]


def _seconds(tus: Tus, path: str, headers: dict[str, str]) -> float:
    with tus.connect() as connection:
        began = time.perf_counter()
        connection.request("HEAD", path, {"Tus-Resumable": "1.0.0", **headers})
        return time.perf_counter() - began


def _fixed(response: Response) -> list[tuple[str, str]]:
    """The fields that do not change from one response to the next."""
    return [pair for pair in response.headers if pair[0].lower() not in ("date", "x-request-id")]
