"""Real PostgreSQL and Redis as child processes, for the default that needs no configuration.

The servers belong to a data folder, not to a process: whoever comes first starts them, whoever
comes later joins them, the last to leave stops them.
"""

from ppworker.embedded.servers import EmbeddedServers, Servers, acquire

__all__ = ["EmbeddedServers", "Servers", "acquire"]
