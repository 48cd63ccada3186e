"""A Starlette application with a session, whose users upload files of their own."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.sessions import SessionMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount, Route

from tusd_py import Identity, Settings, TusApp


async def authenticate(request: Request) -> Identity | None:
    user = request.session.get("user")
    return None if user is None else Identity(owner=user)


uploads = TusApp(Settings(upload_dir="./uploads", base_path="/"), authenticate=authenticate)


async def login(request: Request) -> Response:
    # Check a password here.
    request.session["user"] = request.query_params["user"]
    return PlainTextResponse("welcome\n")


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    # Open your own resources here.
    async with uploads.lifespan(app):
        yield


app = Starlette(
    routes=[
        Route("/login", login, methods=["POST"]),
        Route("/metrics", uploads.metrics),
        Mount("/uploads", app=uploads.health),
        Mount("/files", app=uploads),
    ],
    middleware=[Middleware(SessionMiddleware, secret_key="a secret of your own")],
    lifespan=lifespan,
)
