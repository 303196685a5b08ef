"""Makes keys: UUIDv7 (RFC 9562), so that rows made together lie together and sort by their time."""

import os
import time
from datetime import datetime
from uuid import UUID


def first_id(at: datetime) -> UUID:
    """The least key that could have been made at a time: keys below it were made before."""
    return UUID(int=(int(at.timestamp() * 1000) & 0xFFFFFFFFFFFF) << 80)


def new_id() -> UUID:
    """A new UUIDv7: 48 bits of milliseconds since 1970, 12 bits of their fraction (method 3 of the
    RFC, so keys made one after another ascend), 62 random bits."""
    milliseconds, nanoseconds = divmod(time.time_ns(), 1_000_000)
    fraction = (nanoseconds << 12) // 1_000_000
    noise = int.from_bytes(os.urandom(8), "big") & 0x3FFFFFFFFFFFFFFF
    value = (milliseconds & 0xFFFFFFFFFFFF) << 80 | 0x7 << 76 | fraction << 64
    return UUID(int=value | 0b10 << 62 | noise)
