"""Everything that can be configured: environment variables with the prefix ``PPWORKER_``."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, SecretStr, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from ppworker.errors import ConfigurationError

_LONGEST_S = 1e9
"""Thirty years in seconds: the database's times must hold what lies so far back."""
_BESIDE_SLOTS = 2
"""Connections that a worker process needs beside those of its slots: heartbeat, and all else."""


class Settings(BaseSettings):
    """One frozen value, built once at start and passed by hand."""

    model_config = SettingsConfigDict(env_prefix="PPWORKER_", frozen=True, extra="ignore")

    database_url: SecretStr | None = Field(
        default=None,
        description="PostgreSQL 15 or newer, e.g. postgresql://user:password@host/name; several "
        "hosts as host1:5432,host2:5432: the one that takes writes is used. "
        "Unset: an embedded server in the data folder.",
    )
    redis_url: SecretStr | None = Field(
        default=None,
        description="Redis 6.2 or newer, e.g. redis://host:6379/0. Unset: an embedded server when "
        "the database is embedded too, else none: workers poll.",
    )
    data_dir: Path = Field(
        default=Path(".ppworker"),
        description="Folder of stored files and of the embedded servers' data.",
    )
    inbox_dir: Path | None = Field(
        default=None,
        description="Folder below which messages may name files. Unset: they may name none.",
    )
    api_host: str = Field(
        default="127.0.0.1", description="Address that `ppworker api` and `ppworker up` listen on."
    )
    api_port: Annotated[int, Field(ge=0, le=65535)] = Field(
        default=8765, description="Port of the HTTP API; 0 takes any free one."
    )
    api_threads: Annotated[int, Field(ge=2, le=64)] = Field(
        default=8, description="Requests that the HTTP API works on side by side; others queue."
    )
    worker_port: Annotated[int, Field(ge=0, le=65535)] | None = Field(
        default=None,
        description="Port of `ppworker worker` for health and metrics, on the API's address; "
        "0 takes any free one. Unset: none.",
    )
    processes: Annotated[int, Field(ge=1, le=64)] = Field(
        default=2, description="Worker processes that `ppworker worker` starts."
    )
    threads: Annotated[int, Field(ge=1, le=64)] = Field(
        default=2, description="Slots of one worker process: batches it works on side by side."
    )
    lease_s: Annotated[float, Field(ge=1, le=3600)] = Field(
        default=30.0, description="Seconds a claimed job stays its worker's without a heartbeat."
    )
    poll_s: Annotated[float, Field(ge=0.05, le=60)] = Field(
        default=1.0, description="Seconds between polls of an idle worker, jittered by half."
    )
    sweep_s: Annotated[float, Field(ge=0.2, le=300)] = Field(
        default=5.0, description="Seconds between sweeps of a worker process, jittered by half."
    )
    recount_s: Annotated[float, Field(ge=1, le=_LONGEST_S)] = Field(
        default=240.0,
        description="Seconds after which a split's label stats are compared with a recount again, "
        "and set right if they differ.",
    )
    slice_s: Annotated[float, Field(ge=0.1, le=60)] = Field(
        default=0.5,
        description="Seconds one post-processor keeps a slot before others take their turn, until "
        "the end of its batch; an operation keeps its thread four times as long.",
    )
    batch_target_s: Annotated[float, Field(ge=0.01, le=60)] = Field(
        default=1.0, description="Seconds of model time that one batch should last at most."
    )
    grace_s: Annotated[float, Field(ge=0, le=3600)] = Field(
        default=20.0,
        description="Seconds a stopping worker waits for running batches before it releases them.",
    )
    idle_unload_s: Annotated[float, Field(ge=1)] = Field(
        default=300.0, description="Seconds after which an unused model is unloaded."
    )
    pool_size: Annotated[int, Field(ge=1, le=200)] | None = Field(
        default=None,
        description="Database connections of one process at most, at least threads + 2; default "
        "threads + 6, for the API its threads + 2.",
    )
    circuit_failures: Annotated[int, Field(ge=1, le=1_000_000)] = Field(
        default=10,
        description="Attempts in a row that fail for the model's sake, over all workers; then its "
        "post-processor pauses.",
    )
    circuit_pause_s: Annotated[float, Field(ge=0.1, le=3600)] = Field(
        default=5.0,
        description="Seconds of the first such pause, doubled each time that no answer came since; "
        "jittered by half.",
    )
    circuit_max_pause_s: Annotated[float, Field(ge=0.1, le=86_400)] = Field(
        default=300.0, description="Seconds of the longest such pause."
    )
    max_text_bytes: Annotated[int, Field(ge=1)] = Field(
        default=4 * 1024 * 1024, description="Most bytes of an item's text."
    )
    max_file_bytes: Annotated[int, Field(ge=1)] = Field(
        default=2 * 1024**3, description="Most bytes of one uploaded file."
    )
    max_archive_members: Annotated[int, Field(ge=1, le=10_000_000)] = Field(
        default=200_000, description="Most files of an uploaded archive."
    )
    max_archive_bytes: Annotated[int, Field(ge=1)] = Field(
        default=20 * 1024**3, description="Most bytes of all files of an archive, unpacked."
    )
    max_bulk_items: Annotated[int, Field(ge=1)] = Field(
        default=100_000, description="Most items that one request makes."
    )
    export_keep_s: Annotated[float, Field(ge=60)] = Field(
        default=24 * 3600.0,
        description="Seconds for which an exported archive can be downloaded.",
    )
    keep_completed_s: Annotated[float, Field(ge=0, le=_LONGEST_S)] = Field(
        default=30 * 24 * 3600.0,
        description="Seconds for which completed jobs and operations are kept, and dead letters "
        "that were replayed; answers and annotations stay. 0: for ever.",
    )
    keep_failed_s: Annotated[float, Field(ge=0, le=_LONGEST_S)] = Field(
        default=90 * 24 * 3600.0,
        description="The same for failed ones, cancelled jobs and waiting dead letters.",
    )
    keep_keys_s: Annotated[float, Field(ge=0, le=_LONGEST_S)] = Field(
        default=90 * 24 * 3600.0,
        description="Seconds for which idempotency keys are kept: what comes again later with "
        "one is done again. 0: for ever.",
    )
    max_body_bytes: Annotated[int, Field(ge=1024)] = Field(
        default=64 * 1024 * 1024,
        description="Most bytes of a request's JSON body; files have their own limit.",
    )
    operation_wait_s: Annotated[float, Field(ge=0, le=300)] = Field(
        default=20.0,
        description="Seconds a request waits for the operation it began before it answers "
        "with the operation instead.",
    )
    inference_models: Annotated[int, Field(ge=1, le=64)] = Field(
        default=2,
        description="Models that the HTTP API keeps loaded for inferences at most, each in a "
        "process of its own, and asks side by side; other requests queue.",
    )
    inference_timeout_s: Annotated[float, Field(ge=0.1, le=3600)] = Field(
        default=60.0,
        description="Seconds that a model may take for one inference by HTTP, once it is loaded; "
        "as long a request waits for its turn.",
    )
    registration: Literal["open", "closed"] = Field(
        default="closed",
        description="open: whoever reaches the HTTP API may make an account. closed: `ppworker "
        "users create` makes them.",
    )
    session_days: Annotated[int, Field(ge=1, le=3650)] = Field(
        default=30, description="Days that the key of a login lives."
    )
    login_window_s: Annotated[float, Field(ge=1, le=86_400)] = Field(
        default=900.0, description="Seconds within which failed logins are counted."
    )
    login_failures: Annotated[int, Field(ge=1, le=100_000)] = Field(
        default=10,
        description="Failed logins of one user name within the window; then it waits for its end.",
    )
    address_failures: Annotated[int, Field(ge=1, le=1_000_000)] = Field(
        default=100,
        description="Failed logins from one address within the window, and as many registrations.",
    )
    crash_at: str | None = Field(
        default=None,
        description="For tests of ppworker itself: a named point at which a process kills itself.",
    )
    log_level: str = Field(default="info", description="debug, info, warning or error.")
    log_format: str = Field(
        default="auto", description="json, text, or auto: text on a terminal, JSON lines elsewhere."
    )

    @field_validator("data_dir", mode="before")
    @classmethod
    def _named_folder(cls, value: object) -> object:
        if value == "":  # Path takes it for the working directory
            raise ValueError("is empty; name a folder, or unset it")
        return value

    @field_validator("pool_size")
    @classmethod
    def _room_for_slots(cls, value: int | None, info: ValidationInfo) -> int | None:
        threads = info.data.get("threads", 0)
        if value is not None and value < threads + _BESIDE_SLOTS:
            raise ValueError(
                f"is too small for {threads} slots (PPWORKER_THREADS), whose batches and leases "
                f"would wait for each other; make it {threads + _BESIDE_SLOTS} or more, or unset it"
            )
        return value

    @field_validator("log_level")
    @classmethod
    def _known_level(cls, value: str) -> str:
        if value.lower() not in {"debug", "info", "warning", "error"}:
            raise ValueError("must be debug, info, warning or error")
        return value.lower()

    @field_validator("log_format")
    @classmethod
    def _known_format(cls, value: str) -> str:
        if value not in {"auto", "json", "text"}:
            raise ValueError("must be auto, json or text")
        return value

    @property
    def connections(self) -> int:
        """Database connections a worker process may hold: slots, heartbeat, sweeps, polling,
        refresh, operations, commands."""
        return self.pool_size or self.threads + 6


def load(**overrides: object) -> Settings:
    """Read the settings from the environment; ``overrides`` that are not None win.

    Raises:
        ConfigurationError: a value is malformed; names the variable, never the value.
    """
    given = {name: value for name, value in overrides.items() if value is not None}
    try:
        return Settings(**given)  # type: ignore[arg-type]  # pydantic checks them, that is the point
    except ValidationError as error:
        first = error.errors()[0]
        name = "PPWORKER_" + str(first["loc"][0]).upper() if first["loc"] else "settings"
        raise ConfigurationError(f"{name}: {first['msg']}") from None
