"""Uploads, from their creation to their end."""
