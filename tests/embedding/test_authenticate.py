"""`TusApp(authenticate=...)`: the application says who sends a request, and the rules are those of `--auth jwt`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.auth.people import GRACE, SECRET, TTL, bearer, upload_token
from tests.auth.test_matrix import CELLS, PEOPLE, REVOKE, asked, made, target_for
from tests.support.application import Application
from tests.support.tus import Tus, id_of, path_of
from tusd_py import Identity, Settings, TusApp

CODE = f"""
import asyncio
import jwt
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route
from tusd_py import Identity, Settings, TusApp

SCOPES = {{f"uploads:{{right}}": right for right in ("create", "read", "delete", "admin")}}


def from_token(request):
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if not token:
        return None
    try:
        claims = jwt.decode(token, {SECRET!r}, algorithms=["HS256"])
    except jwt.PyJWTError:
        return None
    rights = [SCOPES[name] for name in claims["scope"].split() if name in SCOPES]
    return Identity(owner=claims["sub"], rights=rights)


class Session:
    async def __call__(self, request):
        match request.cookies.get("session"):
            case None:
                return None
            case "gone":
                raise HTTPException(401, "sign in again", {{"X-Reason": "timeout"}})
            case "login":
                raise HTTPException(302, headers={{"Location": "/login"}})
            case "busy":
                raise HTTPException(503, "later", {{"Retry-After": "1"}})
            case "object":
                return object()
            case "crash":
                raise RuntimeError("the secret of the application")
            case "body":
                await request.body()
            case "small":
                return Identity("small", max_upload_size=10, max_open_uploads=1)
            case "slow":
                await asyncio.sleep(60)
            case user:
                return Identity(user)


class Refreshing:
    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        async def refreshing(message):
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"set-cookie", b"session=fresh")]
            await send(message)

        await self.app(scope, receive, refreshing if scope["type"] == "http" else send)


common = dict(upload_token_secret_file="secret", upload_token_ttl={TTL}, upload_token_grace={GRACE})
tokens = TusApp(
    Settings(upload_dir="uploads", base_path="/files/", duplicates="off", **common),
    authenticate=from_token,
)
sessions = TusApp(
    Settings(upload_dir="sessions", base_path="/", hooks_timeout=3, **common),
    authenticate=Session(),
)


async def lifespan(app):
    async with tokens.lifespan(), sessions.lifespan():
        yield


app = Starlette(
    routes=[Mount("/sessions", app=Refreshing(sessions)), Mount("/", app=tokens)],
    lifespan=lifespan,
)
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Application]:
    directory = tmp_path_factory.mktemp("application")
    (directory / "secret").write_text(SECRET)
    flags = ("--http", "tusd_py:UploadProtocol")
    with Application(directory, CODE, *flags) as running:
        yield running


@pytest.fixture
def tus(server: Application) -> Tus:
    return Tus(server)


@pytest.fixture
def sessions(server: Application) -> Tus:
    client = Tus(server)
    client.collection = "/sessions/"
    return client


def cookie(value: str) -> dict[str, str]:
    return {"Cookie": f"session={value}"}


def test_who_may_do_what(tus: Tus, server: Application) -> None:
    """The matrix of `--auth jwt`, where the application reads the access tokens."""
    wrong: list[str] = []
    for cell in CELLS:
        who, what, status = (str(value) for value in cell.values)
        target = target_for(tus, what)
        headers = PEOPLE[who](target)
        if who == "upload token revoked":
            asked(tus, "revoke", target, PEOPLE["owner"](target))
        before = server.stored(target.id)
        response = asked(tus, what, target, headers)
        refused = response.status >= 400
        if response.status != int(status) or (refused and server.stored(target.id) != before):
            wrong.append(f"{cell.id}: {response.status}, not {status}")
    assert not wrong


def test_nobody_is_refused_before_the_body(sessions: Tus) -> None:
    headers = {"Upload-Length": "5", "Content-Length": "5", "Tus-Resumable": "1.0.0"}
    with sessions.connect() as connection:
        connection.send_head("POST", "/sessions/", {**headers, "Expect": "100-continue"})
        response = connection.read_response()
    assert response.status == 401
    assert (
        response.text == "ERR_UNAUTHENTICATED: nobody is signed in, and there is no upload token\n"
    )
    assert not response.interim


def test_an_upload_of_a_session_is_its_owners(sessions: Tus) -> None:
    created = sessions.create(5, body=b"ab", headers=cookie("alice"))
    path = path_of(created["Location"])
    assert sessions.head(path, cookie("bob")).status == 404
    assert sessions.patch(path, 2, b"cde", cookie("alice")).status == 204
    assert sessions.get(path, cookie("bob")).status == 404
    assert sessions.get(path, cookie("alice")).body == b"abcde"
    # A token of one upload for clients without a session, renewed below the place where the uploads are mounted.
    token = bearer(created["Upload-Token"])
    assert sessions.head(path, token).status == 200
    part = path_of(sessions.create(5, headers=cookie("alice"))["Location"])
    renewed = sessions.request(
        "POST", "/sessions/auth/refresh-upload-token", bearer(upload_token(id_of(part)))
    )
    assert renewed.status == 200


@pytest.mark.parametrize(
    ("session", "status", "text"),
    [
        ("gone", 401, "sign in again"),
        ("login", 401, "authentication is needed"),
        ("busy", 503, "later"),
        ("object", 500, "internal server error"),
        ("crash", 500, "internal server error"),
        ("body", 500, "internal server error"),
        ("slow", 503, "temporarily unavailable"),
    ],
)
def test_what_else_the_application_answers(
    sessions: Tus, server: Application, session: str, status: int, text: str
) -> None:
    response = sessions.create(5, body=b"hello", headers=cookie(session))
    assert response.status == status
    assert text in response.text
    assert "secret of" not in response.text
    assert response.get("Location") is None
    if session == "gone":
        assert response["X-Reason"] == "timeout"
    if session == "object":
        server.wait_for_line("authenticate must return a tusd_py.Identity or None, not object")
    if session == "busy":
        # Clients take any other failure of a HEAD for the end of the upload.
        assert sessions.head(f"/sessions/{'0' * 32}", cookie(session)).status == 423


def test_limits_of_an_identity(sessions: Tus) -> None:
    assert sessions.create(11, headers=cookie("small")).status == 413
    assert sessions.create(10, headers=cookie("small")).status == 201
    assert sessions.create(10, headers=cookie("small")).status == 429


def test_middleware_sees_responses_also_with_our_protocol(sessions: Tus) -> None:
    created = sessions.create(5, headers=cookie("alice"))
    path = path_of(created["Location"])
    patched = sessions.patch(path, 0, b"hello", cookie("alice"))
    downloaded = sessions.get(path, cookie("alice"))
    for response in (created, patched, downloaded):
        assert response["Set-Cookie"] == "session=fresh"


def test_a_revoked_owner_may_go_on_if_the_application_says_so(tus: Tus) -> None:
    path = made(tus, 10)
    owner = PEOPLE["owner"](target_for(tus, "HEAD"))
    token = bearer(upload_token(id_of(path)))
    assert tus.request("POST", REVOKE, owner, b'{"owner": "alice"}').status == 204
    assert tus.head(path, token).status == 401
    assert tus.head(path, owner).status == 200


@pytest.mark.parametrize(
    "arguments",
    [
        {"owner": ""},
        {"owner": 5},
        {"owner": "a\nb"},
        {"owner": "a" * 257},
        {"owner": "a", "rights": "create"},
        {"owner": "a", "rights": ["write"]},
        {"owner": "a", "rights": None},
        {"owner": "a", "max_upload_size": -1},
        {"owner": "a", "max_upload_size": "10MB"},
    ],
)
def test_an_identity_that_cannot_be_used(arguments: dict[str, str]) -> None:
    with pytest.raises((TypeError, ValueError), match="of an Identity must"):
        Identity(**arguments)  # type: ignore[arg-type]


def test_only_one_of_them_authenticates() -> None:
    with pytest.raises(ValueError, match="exclude each other"):
        TusApp(Settings(auth="jwt", jwt_secret=SECRET), authenticate=lambda _: None)
