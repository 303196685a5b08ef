"""The command line: each command parses, calls one function of the pipeline or store, and prints.

Nothing is decided here, and nothing heavy is imported before a command needs it.
"""

from ppworker.cli.program import main

__all__ = ["main"]
