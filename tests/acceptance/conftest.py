"""Servers and worker processes for tests that look at the program from outside."""

from live_workers import live, servers, start

__all__ = ["live", "servers", "start"]
