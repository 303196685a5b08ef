"""The published schema of messages: what each may hold, and what a malformed one says.

A command is followed once, whoever sends it how often: its ``key`` decides. Unknown fields are
passed over, so that newer producers can talk to older workers; an unknown ``schema_version`` is
not. Hints are the models at the end; how they travel stays in ``hints``.
"""

import json
from typing import Annotated, Any, Literal, TypeVar
from uuid import UUID

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    Strict,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from ppworker.domain.text import clean_text
from ppworker.errors import Invalid
from ppworker.worker.hints import REFRESH_LABEL_STATS, RUN_JOBS

SCHEMA_VERSION = 1
TAKE_UPLOAD = "take_upload"
APPLY_INFERENCES = "apply_inferences"
RETRY_JOB = "retry_job"

MAX_MESSAGE_BYTES = 16 * 1024 * 1024
"""Most bytes of a whole message."""
MAX_TEXT_BYTES = 64 * 1024
"""Most bytes of a text that travels in a message, in UTF-8."""
MAX_ITEMS = 500
"""Most items of one upload."""
MAX_INFERENCES = 1000
"""Most inferences that travel in a message; more come as a file."""
_MAX_WORD = 200
_MAX_PATH = 4096

M = TypeVar("M", bound=BaseModel)


def _known(version: int) -> int:
    if version != SCHEMA_VERSION:
        raise ValueError(f"version {version} is unknown here; {SCHEMA_VERSION} is known")
    return version


def _none(args: list[Any]) -> list[Any]:
    if args:
        raise ValueError("a command takes its fields by their names: send(key=..., split=...)")
    return args


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("has control characters; leave them out")
    return text


def _storable(text: str) -> str:
    if clean_text(text)[1]:
        raise ValueError("has NUL or half of a surrogate pair; leave them out")
    return text


def _short(text: str) -> str:
    size = len(text.encode(errors="surrogatepass"))
    if size > MAX_TEXT_BYTES:
        raise ValueError(
            f"has {size} bytes, more than {MAX_TEXT_BYTES}; store it with `ppworker blobs add` "
            "or put it into the inbox, and name it by `blob` or `path`"
        )
    return text


Word = Annotated[str, Field(min_length=1, max_length=_MAX_WORD), AfterValidator(_printable)]
Text = Annotated[
    str,
    AfterValidator(_short),
    Field(description=f"The content itself, at most {MAX_TEXT_BYTES} bytes in UTF-8."),
]
Blob = Annotated[
    str,
    Field(
        pattern="^[0-9a-f]{64}$",
        description="SHA-256 of a stored file, in lower case: one that this user stored "
        "(`ppworker blobs add`) or that one of this user's items carries.",
    ),
]
InboxPath = Annotated[
    str,
    Field(
        min_length=1,
        max_length=_MAX_PATH,
        description="File below PPWORKER_INBOX_DIR of the workers. No `..`, no symbolic link on "
        "the way; refused while that setting is unset.",
    ),
]
SplitRef = Annotated[
    str,
    Field(min_length=1, max_length=2 * _MAX_WORD, description="DATASET/SPLIT, or a split's id."),
    AfterValidator(_printable),
]


def _one_of(*names: str) -> dict[str, Any]:
    """What pydantic checks and its schema cannot say."""
    return {"oneOf": [{"required": [name]} for name in names]}


class _Model(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)


class Command(_Model):
    """What every command holds."""

    model_config = ConfigDict(json_schema_extra=_one_of("user", "api_key"))

    schema_version: Annotated[
        int,
        AfterValidator(_known),
        Field(
            description="Version of this schema; 1 is the only one there is.",
            json_schema_extra={"const": SCHEMA_VERSION},
        ),
    ]
    key: Annotated[
        Word,
        Field(
            description="Idempotency key, unique per user. The same command with the same key is "
            "followed once, however often it is sent; another command with it is refused."
        ),
    ]
    api_key: Annotated[
        SecretStr | None,
        Field(description="Key of the user, one that may write. Give this or `user`."),
    ] = None
    user: Annotated[
        Word | None,
        Field(
            validate_default=True,
            description="Name of the user it acts for. Give this or `api_key`.",
        ),
    ] = None

    @field_validator("user")
    @classmethod
    def _one_sender(cls, user: str | None, info: ValidationInfo) -> str | None:
        if "api_key" in info.data and (user is None) == (info.data["api_key"] is None):
            raise ValueError("name the `user` or give an `api_key`: one of the two")
        return user


class UploadItem(_Model):
    """One item: a name and where its content is."""

    model_config = ConfigDict(json_schema_extra=_one_of("text", "blob", "path"))

    name: Annotated[
        str,
        Field(
            min_length=1,
            max_length=1000,
            description="Name of the file, with its extension; shown, never used as a path.",
        ),
    ]
    text: Text | None = None
    blob: Blob | None = None
    path: InboxPath | None = None
    metadata: Annotated[
        str,
        AfterValidator(_storable),
        AfterValidator(_short),
        Field(description="Kept with the item as it is."),
    ] = ""

    @model_validator(mode="after")
    def _one_source(self) -> "UploadItem":
        if sum(source is not None for source in (self.text, self.blob, self.path)) != 1:
            raise ValueError("give one of `text`, `blob` and `path`")
        return self


class TakeUpload(Command):
    """Take items into a split and plan their jobs: all of them or none."""

    split: SplitRef
    items: Annotated[
        list[UploadItem],
        Field(min_length=1, max_length=MAX_ITEMS, description="What becomes items."),
    ]
    priority: Annotated[
        Literal["interactive", "bulk"],
        Field(description="Jobs of bulk uploads wait while interactive ones are due."),
    ] = "interactive"


class ApplyInferences(Command):
    """Apply predictions made elsewhere to a split, as an operation."""

    model_config = ConfigDict(
        json_schema_extra={
            "allOf": [_one_of("user", "api_key"), _one_of("inferences", "blob", "path")]
        }
    )

    split: SplitRef
    keep_annotations: Annotated[
        bool,
        Field(
            description="Whether predictions become annotations; else items come without labels."
        ),
    ] = True
    blob: Annotated[Blob | None, Field(description="A stored file of JSON Lines.")] = None
    path: Annotated[InboxPath | None, Field(description="A file of JSON Lines in the inbox.")] = (
        None
    )
    inferences: Annotated[
        list[dict[str, Any]] | None,
        Field(
            min_length=1,
            max_length=MAX_INFERENCES,
            validate_default=True,
            description="The inferences themselves.",
            json_schema_extra={"items": {"$ref": "#/components/schemas/Inference"}},
        ),
    ] = None

    @field_validator("inferences")
    @classmethod
    def _one_source(
        cls, inferences: list[dict[str, Any]] | None, info: ValidationInfo
    ) -> list[dict[str, Any]] | None:
        files = [info.data.get(name) for name in ("blob", "path")]
        if sum(source is not None for source in (inferences, *files)) != 1:
            raise ValueError("give one of `inferences`, `blob` and `path`")
        return inferences


class RetryJob(Command):
    """Start a failed job again with a fresh budget; a job that has not failed is left alone."""

    job: Annotated[UUID, Strict(strict=False), Field(description="Id of the job.")]
    successors: Annotated[
        bool, Field(description="Run later post-processors of the item again, too.")
    ] = False


COMMANDS: dict[str, type[Command]] = {
    TAKE_UPLOAD: TakeUpload,
    APPLY_INFERENCES: ApplyInferences,
    RETRY_JOB: RetryJob,
}
"""Each command's model by the name of its actor."""


class RunJobs(_Model):
    """Look whether a post-processor has due jobs."""

    post_processor_id: Annotated[UUID, Strict(strict=False)]


class RefreshLabelStats(_Model):
    """Fold the changes of label stats."""


HINTS: dict[str, type[BaseModel]] = {RUN_JOBS: RunJobs, REFRESH_LABEL_STATS: RefreshLabelStats}
"""Each hint's model by the name of its actor."""


class Envelope(_Model):
    """A message as dramatiq writes it, as far as a command needs it."""

    message_id: Annotated[str, Field(min_length=1, max_length=_MAX_WORD)]
    actor_name: str
    args: Annotated[
        list[Any],
        AfterValidator(_none),
        Field(
            description="None: every field goes by its name, in `kwargs`.",
            json_schema_extra={"maxItems": 0},
        ),
    ]
    kwargs: dict[str, Any]
    options: dict[str, Any] = {}


def decode(body: bytes) -> Any:
    """The JSON of a message, whatever it is.

    Raises:
        Invalid: it is too large, or no JSON.
    """
    if len(body) > MAX_MESSAGE_BYTES:
        raise Invalid(
            f"the message has {len(body)} bytes, more than {MAX_MESSAGE_BYTES}; send several, or "
            "files by `blob` or `path`",
            field="message",
        )
    try:
        return json.loads(body)
    except (ValueError, RecursionError):  # also: not UTF-8, an integer too long, nested too deep
        raise Invalid("the message is not JSON as dramatiq writes it", field="message") from None


def open_envelope(message: Any) -> Envelope:
    """The envelope of a decoded message.

    Raises:
        Invalid: it is not dramatiq's, or asks for a delay.
    """
    envelope = _validated(Envelope, message, at_the_top="message")
    if "eta" in envelope.options:
        raise Invalid("a command takes no delay; send it when it is time", field="options.eta")
    return envelope


def read(actor_name: str, fields: Any) -> Command:
    """The command that an actor's name and fields make.

    Raises:
        Invalid: the first thing that is wrong, by its field.
    """
    model = COMMANDS.get(actor_name)
    if model is None:
        raise Invalid(
            f"no such command; there are {', '.join(COMMANDS)} on this queue", field="actor_name"
        )
    return _validated(model, fields, at_the_top="kwargs")


def _validated(model: type[M], value: Any, *, at_the_top: str) -> M:
    try:
        return model.model_validate(value)
    except ValidationError as error:
        faults = error.errors(include_url=False, include_context=False, include_input=False)
        more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        said = str(faults[0]["msg"]).removeprefix("Value error, ")
        raise Invalid(f"{said}{more}", field=_path(faults[0]["loc"]) or at_the_top) from None
    except RecursionError:
        raise Invalid("nests too deep", field=at_the_top) from None


def _path(loc: tuple[int | str, ...]) -> str:
    """A place in a message as people write it: ``items[3].text``."""
    written = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc)
    return written.removeprefix(".")
