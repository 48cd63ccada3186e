"""Settings: their list (`model`), their values and sources (`load`), and their documentation (`reference`).

`load` fills `Settings` from the command line, the environment and a file. The rest of the server takes a `Settings` and does
not depend on where values come from.
"""
