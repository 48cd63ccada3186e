"""Telemetry: counters, Prometheus' text format, several processes as one; traces of requests."""
