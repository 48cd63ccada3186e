"""A Flask application; its users upload files of their own to uploads.py, which runs beside it."""

from flask import Flask, request, session

app = Flask(__name__)
app.secret_key = "a secret of your own"


@app.post("/login")
def login() -> str:
    # Check a password here.
    session["user"] = request.form["user"]
    return "welcome\n"
