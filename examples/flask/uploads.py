"""The uploads beside website.py, which know its users by Flask's session cookie."""

from flask.sessions import SecureCookieSessionInterface
from itsdangerous import BadSignature
from starlette.requests import Request
from website import app as website

from tusd_py import Identity, Settings, TusApp

_sessions = SecureCookieSessionInterface().get_signing_serializer(website)


def authenticate(request: Request) -> Identity | None:
    cookie = request.cookies.get(website.config["SESSION_COOKIE_NAME"], "")
    lifetime = int(website.permanent_session_lifetime.total_seconds())
    try:
        session = _sessions.loads(cookie, max_age=lifetime)
    except BadSignature:
        return None
    return Identity(owner=session["user"]) if "user" in session else None


app = TusApp(
    Settings(upload_dir="./uploads", base_path="/files/", behind_proxy="private"),
    authenticate=authenticate,
)
