"""Maintenance of an instance: sweeps and removals, in this process or by the server that holds the locks."""
