"""``python -m ppworker``."""

from ppworker.cli import main

main()
