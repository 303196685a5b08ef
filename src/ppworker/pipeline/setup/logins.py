"""Lets people in by user name and password, and makes accounts for those who ask for one.

Every attempt is counted before its password is hashed, and no transaction is open meanwhile.
"""

import hashlib
import ipaddress
import unicodedata
from dataclasses import dataclass, field
from uuid import UUID

from ppworker.errors import Forbidden, Invalid, TooMany, Unauthenticated
from ppworker.pipeline.deps import Deps
from ppworker.pipeline.setup import passwords
from ppworker.pipeline.setup.accounts import Person, checked, checked_username
from ppworker.store import accounts, attempts
from ppworker.store.accounts import SESSION, Holder, Secret, User
from ppworker.store.attempts import Taken
from ppworker.store.db import Tx

_MAX_ADDRESS = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class LoggedIn:
    """Somebody who was let in, and the key that lets them in from now on."""

    user: User
    key: str = field(repr=False)


def register(deps: Deps, person: Person, password: str, *, address: str) -> LoggedIn:
    """Make an account for whoever asks, with a first session.

    Args:
        deps: the collaborators.
        person: who asks.
        password: theirs from now on.
        address: where they ask from.

    Raises:
        Forbidden: accounts are made by whoever runs the server.
        Invalid: something breaks the rules.
        TooMany: that address asked too often.
        Conflict: the name or the e-mail address is taken.
    """
    if deps.settings.registration != "open":
        raise Forbidden("registration is closed here; ask whoever runs this server for an account")
    wanted = checked(person)
    if not wanted.email:
        raise Invalid("is no e-mail address like name@example.org", field="email")
    secret = passwords.checked(password)
    subject = f"registration from {_network(address)}"
    _take(deps, {subject: deps.settings.address_failures})
    with deps.db.look() as tx:
        accounts.check_free(tx, wanted.username, wanted.email)
    password_hash = passwords.hashed(secret)

    def work(tx: Tx) -> LoggedIn:
        user = accounts.create_user(
            tx,
            wanted.username,
            email=wanted.email,
            name=wanted.name,
            firstname=wanted.firstname,
            password_hash=password_hash,
        )
        return LoggedIn(user=user, key=_session(deps, tx, user.id))

    made = deps.db.transact(work)
    deps.db.transact(attempts.prune)
    return made


def log_in(deps: Deps, username: str, password: str, *, address: str) -> LoggedIn:
    """Let somebody in; a new session each time.

    A user name that nobody has costs as much time as a wrong password, and is told alike.

    Args:
        deps: the collaborators.
        username: who they say they are.
        password: what only they know.
        address: where they ask from.

    Raises:
        Invalid: the password is longer than any can be.
        TooMany: that name or address failed too often; a right password does not help then.
        Unauthenticated: name or password is wrong.
    """
    given = passwords.checked(password)
    name = _name(username)
    address_subject, name_subject = f"login from {_network(address)}", f"login of {_digest(name)}"
    # The address first, as everybody does: they are locked in this order.
    taken = _take(
        deps,
        {
            address_subject: deps.settings.address_failures,
            name_subject: deps.settings.login_failures,
        },
    )
    with deps.db.look() as tx:
        secret = accounts.find_secret(tx, name)
    is_right = passwords.fits(secret.password_hash if secret else None, given)
    deps.db.transact(attempts.prune)
    if secret is None or not is_right:
        raise _wrong()
    return _let_in(deps, secret, given, taken[0], name_subject)


def log_out(deps: Deps, holder: Holder) -> bool:
    """End the session whose key was sent; a key that a person made stays. Whether one ended."""
    return deps.db.transact(lambda tx: accounts.end_session(tx, holder.key_id))


def _let_in(deps: Deps, secret: Secret, given: str, counted: Taken, name_subject: str) -> LoggedIn:
    stored, user = secret.password_hash or "", secret.user
    fresh = passwords.hashed(given) if passwords.is_outdated(stored) else None

    def work(tx: Tx) -> LoggedIn | None:
        attempts.give_back(tx, counted)
        attempts.forget(tx, name_subject)
        if accounts.lock_password(tx, user.id) != stored:
            return None  # it was changed while we compared it, or the account is gone
        if fresh is not None:
            accounts.set_password_hash(tx, user.id, fresh)
        accounts.end_sessions(tx, user.id, only_expired=True)
        return LoggedIn(user=user, key=_session(deps, tx, user.id))

    made = deps.db.transact(work)
    if made is None:
        raise _wrong()
    return made


def _session(deps: Deps, tx: Tx, user_id: UUID) -> str:
    return accounts.create_key(
        tx, user_id, name="login", expires_days=deps.settings.session_days, kind=SESSION
    )


def _take(deps: Deps, limits: dict[str, int]) -> list[Taken]:
    """Count an attempt of each subject, or of none.

    Raises:
        TooMany: one of them had as many as it may.
    """

    def work(tx: Tx) -> list[Taken]:
        taken = []
        for subject, most in limits.items():
            one = attempts.take(tx, subject, most=most, window_s=deps.settings.login_window_s)
            if one is None:
                left = attempts.seconds_left(tx, subject)
                raise TooMany(f"too many attempts; try again in {left} seconds", retry_after_s=left)
            taken.append(one)
        return taken

    return deps.db.transact(work)


def _wrong() -> Unauthenticated:
    return Unauthenticated("user name or password is wrong", field="password")


def _name(username: str) -> str:
    """The name to look for; none that anybody has where it breaks the rules."""
    try:
        return checked_username(username)
    except Invalid:
        return ""


def _digest(name: str) -> str:
    # People type passwords in the wrong place: what they typed is not stored.
    folded = unicodedata.normalize("NFKC", name).casefold()
    return hashlib.sha256(folded.encode()).hexdigest()


def _network(address: str) -> str:
    """What one guest of the network can change at will is one address: a /64 of IPv6."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return ascii(address[:_MAX_ADDRESS])
    if isinstance(found, ipaddress.IPv6Address):
        if found.ipv4_mapped is None:
            return str(ipaddress.IPv6Network((int(found) >> 64 << 64, 64)))
        found = found.ipv4_mapped
    return str(found)
