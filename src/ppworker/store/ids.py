"""Makes keys: UUIDv7 (RFC 9562), so that rows made together lie together and sort by their time."""

import os
import time
from uuid import UUID


def new_id() -> UUID:
    """A new UUIDv7: 48 bits of milliseconds since 1970, 12 bits of their fraction (method 3 of the
    RFC, so keys made one after another ascend), 62 random bits."""
    milliseconds, nanoseconds = divmod(time.time_ns(), 1_000_000)
    fraction = (nanoseconds << 12) // 1_000_000
    noise = int.from_bytes(os.urandom(8), "big") & 0x3FFFFFFFFFFFFFFF
    value = (milliseconds & 0xFFFFFFFFFFFF) << 80 | 0x7 << 76 | fraction << 64
    return UUID(int=value | 0b10 << 62 | noise)
