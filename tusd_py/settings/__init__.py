"""What a server is told to do, and where it was told so.

`Settings` is the one list of settings; `load` fills it from the command line, the environment and a
file. The rest of the server takes a `Settings` and never asks where a value comes from.
"""
