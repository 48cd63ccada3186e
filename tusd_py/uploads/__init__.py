"""The life of an upload, from its creation to its end."""
