"""The processes that the supervisor starts, one module for each role, put together from wiring."""
