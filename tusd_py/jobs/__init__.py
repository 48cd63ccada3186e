"""The job queue as server, commands and workers share it."""
