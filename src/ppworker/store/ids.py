"""Makes keys: UUIDv7 (RFC 9562), so that rows made together lie together."""

import os
import time
from uuid import UUID


def new_id() -> UUID:
    """A new UUIDv7: 48 bits of milliseconds since 1970, 74 random bits."""
    milliseconds = time.time_ns() // 1_000_000
    noise = int.from_bytes(os.urandom(10), "big")
    value = (milliseconds & 0xFFFFFFFFFFFF) << 80
    value |= 0x7 << 76 | (noise >> 68 & 0xFFF) << 64
    value |= 0b10 << 62 | noise & 0x3FFFFFFFFFFFFFFF
    return UUID(int=value)
