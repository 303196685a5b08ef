"""Breaks a running ppworker on purpose and measures what it makes of it. For developers."""
