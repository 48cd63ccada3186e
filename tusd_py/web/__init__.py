"""The edge: HTTP on one side, commands and uploads on the other."""
