"""Every error ppworker raises on purpose.

PpworkerError
├─ ConfigurationError            start-up cannot go on; the command exits 2
├─ RequestError                  the caller's doing; names the field and the remedy
│  ├─ Unauthenticated · Forbidden
│  ├─ NotFound
│  ├─ TooMany                     carries the seconds until it may be asked for again
│  ├─ Conflict
│  │  └─ Stale                    carries the version that there is by now
│  └─ Invalid
│     └─ Malformed · TooLarge
├─ RunnerError                   this attempt's doing; carries code, retryable, retry_after_s
│  ├─ RunnerTimeout · RunnerOverloaded · RunnerCrashed                         retryable
│  ├─ RunnerUnavailable                                                        retryable
│  │  └─ FileMissing
│  └─ UnreadableInput · UnsupportedMedia · BadResponse                         not
├─ StoreRefused                  PostgreSQL refused the data itself
└─ StoreUnavailable              the database is away; back off, keep the process
   └─ CommitUnknown              it went away during COMMIT: read before you repeat
"""


class PpworkerError(Exception):
    """Something ppworker knows how to name went wrong."""


class ConfigurationError(PpworkerError):
    """The process cannot start as configured; the message names the setting and the remedy."""


class RequestError(PpworkerError):
    """The caller asked for something that cannot be done.

    Attributes:
        field: name of the input at fault, as the caller wrote it.
    """

    def __init__(self, message: str, *, field: str = "") -> None:
        super().__init__(message)
        self.field = field


class Unauthenticated(RequestError):  # noqa: N818  names of the error tree read as outcomes
    """Nobody knows who asks: the key is missing, unknown, disabled or expired."""


class Forbidden(RequestError):  # noqa: N818
    """The key is good, but not for this."""


class NotFound(RequestError):  # noqa: N818
    """The thing does not exist, or belongs to somebody else."""


class Conflict(RequestError):  # noqa: N818
    """The thing is in a state that forbids the request."""


class Stale(Conflict):
    """The thing was changed since the caller read it.

    Attributes:
        current_version: of the thing, by now.
    """

    def __init__(self, message: str, *, current_version: int, field: str = "If-Match") -> None:
        super().__init__(message, field=field)
        self.current_version = current_version


class Unavailable(RequestError):  # noqa: N818
    """It cannot be done now; the same request may succeed later."""


class TooMany(RequestError):  # noqa: N818
    """It was asked for more often than it may be.

    Attributes:
        retry_after_s: seconds until it may be asked for again.
    """

    def __init__(self, message: str, *, retry_after_s: int, field: str = "") -> None:
        super().__init__(message, field=field)
        self.retry_after_s = retry_after_s


class Invalid(RequestError):  # noqa: N818
    """The input breaks a rule."""


class Malformed(Invalid):
    """The request cannot be read at all."""


class TooLarge(Invalid):
    """The input is larger than a limit."""


class RunnerError(PpworkerError):
    """A model gave no usable answer for one input or for a whole batch.

    Attributes:
        code: stable word for logs, metrics and the job's ``reason``.
        retryable: whether the same input may succeed later.
        retry_after_s: seconds the model asked us to wait, or None.
    """

    code = "model_error"
    retryable = False

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        retryable: bool | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        if code is not None:
            self.code = code
        if retryable is not None:
            self.retryable = retryable
        self.retry_after_s = retry_after_s


class RunnerTimeout(RunnerError):  # noqa: N818
    """The model did not answer before the deadline."""

    code = "timeout"
    retryable = True


class RunnerOverloaded(RunnerError):  # noqa: N818
    """The model asked to be left alone for a while (HTTP 429 or 503)."""

    code = "overloaded"
    retryable = True


class RunnerUnavailable(RunnerError):  # noqa: N818
    """The model cannot be loaded or reached now."""

    code = "unavailable"
    retryable = True


class FileMissing(RunnerUnavailable):
    """The stored file of one input cannot be opened now; says nothing of the model."""

    code = "file_missing"


class RunnerCrashed(RunnerError):  # noqa: N818
    """The process that held the model died while this input was in it."""

    code = "crash"
    retryable = True


class UnreadableInput(RunnerError):  # noqa: N818
    """The input is broken: no later attempt can read it."""

    code = "unreadable_input"


class UnsupportedMedia(RunnerError):  # noqa: N818
    """The input is of a kind this model does not take."""

    code = "unsupported_media"


class BadResponse(RunnerError):  # noqa: N818
    """The model's answer breaks the contract."""

    code = "bad_response"


class StoreUnavailable(PpworkerError):  # noqa: N818
    """PostgreSQL cannot be reached or refuses writes."""


class StoreRefused(PpworkerError):  # noqa: N818
    """PostgreSQL refused the data; no repetition of the same rows can succeed."""


class CommitUnknown(StoreUnavailable):
    """The connection was lost while COMMIT was in flight; it may or may not have happened."""
