"""Jobs that run beside the server: sweeping what was abandoned, delivering events again.

The package stands apart from ``tusd_py`` because workers are scaled apart from the server, on other
machines if need be; it works on the same storage and state and never answers a client.
"""
