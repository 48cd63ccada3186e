"""Pages for browsers: files that `frontend/build.py` built, and how they are sent."""
