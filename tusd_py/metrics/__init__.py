"""Metrics: counters, Prometheus' text format, several processes as one."""
