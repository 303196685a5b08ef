"""Hashes passwords slowly, so that whoever steals the hashes must take long over every guess."""

import unicodedata

from argon2 import PasswordHasher, Type
from argon2.exceptions import InvalidHashError, VerifyMismatchError

from ppworker.errors import Invalid

MOST = 256
"""Characters of the longest password, 1,024 bytes: hashing has its price, and that an end."""

# 64 MiB and two passes: three times what OWASP asks for at least, about 0.1 s of one core.
_HASHER = PasswordHasher(
    time_cost=2, memory_cost=64 * 1024, parallelism=1, hash_len=32, salt_len=16, type=Type.ID
)
_NOBODYS = f"$argon2id$v=19$m=65536,t=2,p=1${'A' * 22}${'A' * 43}"
"""What is compared where there is no hash: no password fits, and it takes as long as any other."""


def checked(password: str) -> str:
    """The password as it is hashed: however a keyboard composes its letters.

    Raises:
        Invalid: it is empty or too long; the message does not repeat it.
    """
    if not 1 <= len(password) <= MOST:
        raise Invalid(f"has 1 to {MOST} characters", field="password")
    if any("\ud800" <= letter <= "\udfff" for letter in password):
        raise Invalid("holds half a character; write it in UTF-8", field="password")
    return unicodedata.normalize("NFC", password)


def hashed(password: str) -> str:
    """The hash of a password that was checked, with its parameters and salt in it."""
    return _HASHER.hash(password)


def fits(stored: str | None, password: str) -> bool:
    """Whether a checked password is the one that was hashed; never where there is no hash.

    Takes as long for nobody as for somebody.
    """
    try:
        _HASHER.verify(stored or _NOBODYS, password)
    except (VerifyMismatchError, InvalidHashError):
        return False
    return stored is not None


def is_outdated(stored: str) -> bool:
    """Whether a hash was made with other parameters than today's."""
    return _HASHER.check_needs_rehash(stored)
