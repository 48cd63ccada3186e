"""Maintenance of an instance: sweeps and removals, done here or by the server that holds the locks."""
