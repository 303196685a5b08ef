"""ppworker turns uploaded data into trustworthy annotations by itself."""

__version__ = "0.1.0"
