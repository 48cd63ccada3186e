"""Background jobs: sweeps of expired uploads and deliveries of events to hooks.

The package is separate from ``tusd_py`` because workers scale separately from the server, if need be on other machines. It
works on the same storage and Redis and never answers a client.
"""
