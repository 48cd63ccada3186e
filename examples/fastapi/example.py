"""A FastAPI application whose users sign in, upload files of their own, and see which of them are finished."""

import secrets
from collections import defaultdict
from typing import Annotated

from fastapi import Depends, FastAPI, HTTPException, Request, Response

from tusd_py import Event, Identity, Settings, TusApp

SESSIONS: dict[str, str] = {}
FINISHED: dict[str, list[str]] = defaultdict(list)


def current_user(request: Request) -> str:
    user = SESSIONS.get(request.cookies.get("session", ""))
    if user is None:
        raise HTTPException(401, "sign in first")
    return user


def authenticate(request: Request) -> Identity:
    return Identity(owner=current_user(request))


class Finished:
    async def post_finish(self, event: Event) -> None:
        FINISHED[event.upload.owner].append(event.upload.id)


uploads = TusApp(
    Settings(upload_dir="./uploads", base_path="/", max_size="10GiB"),
    authenticate=authenticate,
    hooks=[Finished()],
)
app = FastAPI(lifespan=uploads.lifespan)
app.mount("/files", uploads)
app.mount("/uploads", uploads.health)
app.add_route("/metrics", uploads.metrics)


@app.post("/login")
def login(user: str, response: Response) -> None:
    # Check a password here.
    session = secrets.token_urlsafe()
    SESSIONS[session] = user
    response.set_cookie("session", session, httponly=True, samesite="lax")


@app.get("/finished")
def finished(user: Annotated[str, Depends(current_user)]) -> list[str]:
    return FINISHED[user]
