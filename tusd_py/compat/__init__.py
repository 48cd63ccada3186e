"""Fronts of other servers, on this one's engine."""
