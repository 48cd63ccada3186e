"""The uploads of one set of settings, put together without HTTP: for servers, workers, commands and sweeps."""
