"""The Redis server that is started where none is configured."""
