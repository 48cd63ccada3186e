"""A Django project in one file, whose users upload files of their own beside its views."""

import sys
from pathlib import Path

import django
from django.conf import settings

settings.configure(
    SECRET_KEY="a secret of your own",
    ALLOWED_HOSTS=["127.0.0.1", "localhost"],
    ROOT_URLCONF=__name__,
    DATABASES={
        "default": {"ENGINE": "django.db.backends.sqlite3", "NAME": Path("users.sqlite3").resolve()}
    },
    INSTALLED_APPS=[
        "django.contrib.auth",
        "django.contrib.contenttypes",
        "django.contrib.sessions",
    ],
    MIDDLEWARE=[
        "django.contrib.sessions.middleware.SessionMiddleware",
        "django.contrib.auth.middleware.AuthenticationMiddleware",
    ],
)
django.setup()

from django.contrib.auth import authenticate as check_password  # noqa: E402
from django.contrib.auth import get_user, login  # noqa: E402
from django.contrib.sessions.backends.db import SessionStore  # noqa: E402
from django.core.asgi import get_asgi_application  # noqa: E402
from django.core.management import execute_from_command_line  # noqa: E402
from django.db import close_old_connections  # noqa: E402
from django.http import HttpRequest, HttpResponse  # noqa: E402
from django.urls import path  # noqa: E402
from starlette.applications import Starlette  # noqa: E402
from starlette.requests import Request  # noqa: E402
from starlette.routing import Mount  # noqa: E402

from tusd_py import Identity, Settings, TusApp  # noqa: E402


def sign_in(request: HttpRequest) -> HttpResponse:
    user = check_password(request, username=request.POST["user"], password=request.POST["password"])
    if user is None:
        return HttpResponse(status=403)
    login(request, user)
    return HttpResponse("welcome\n")


urlpatterns = [path("login", sign_in)]


def authenticate(request: Request) -> Identity | None:
    # Runs in a thread, as Django's database needs it.
    close_old_connections()
    asking = HttpRequest()
    asking.session = SessionStore(request.cookies.get(settings.SESSION_COOKIE_NAME))
    user = get_user(asking)
    return Identity(owner=str(user.pk)) if user.is_authenticated else None


uploads = TusApp(Settings(upload_dir="./uploads", base_path="/"), authenticate=authenticate)
app = Starlette(
    routes=[Mount("/files", app=uploads), Mount("/", app=get_asgi_application())],
    lifespan=uploads.lifespan,
)

if __name__ == "__main__":
    execute_from_command_line(sys.argv)
