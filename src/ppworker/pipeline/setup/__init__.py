"""Accounts, datasets and post-processors."""
