"""Datasets go in and out as archives, are duplicated, and are deleted, step by step."""
