"""The schema on one page: every table, constraint and index.

Keys are UUIDv7 made by us; users, datasets and versions also carry an integer public key for other
wire dialects. Times are with time zone and come from the database. Migrations build exactly this;
a test compares the two.
"""

import sqlalchemy as sa
from sqlalchemy import CheckConstraint, Column, ForeignKey, Index, MetaData, Table, UniqueConstraint
from sqlalchemy.dialects import postgresql
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, TIMESTAMP
from sqlalchemy.types import BigInteger, Boolean, Double, Integer, SmallInteger, Text

metadata = MetaData(
    naming_convention={
        "ix": "%(table_name)s_%(column_0_N_name)s",
        "pk": "%(table_name)s_pkey",
        "fk": "%(table_name)s_%(column_0_N_name)s_fkey",
        "uq": "%(table_name)s_%(column_0_N_name)s_key",
        "ck": "%(table_name)s_%(constraint_name)s",
    }
)

Uuid = postgresql.UUID(as_uuid=True)
Time = TIMESTAMP(timezone=True)
NOW = sa.text("now()")


def _id() -> Column[object]:
    return Column("id", Uuid, primary_key=True)


def _public_id() -> Column[int]:
    return Column("public_id", BigInteger, sa.Identity(always=True), nullable=False, unique=True)


def _times() -> list[Column[object]]:
    return [
        Column("created_at", Time, nullable=False, server_default=NOW),
        Column("updated_at", Time, nullable=False, server_default=NOW),
    ]


users = Table(
    "users",
    metadata,
    _id(),
    _public_id(),
    Column("username", Text, nullable=False, unique=True),
    Column("email", Text, nullable=False, server_default=""),
    Column("name", Text, nullable=False, server_default=""),
    Column("firstname", Text, nullable=False, server_default=""),
    Column("password_hash", Text),  # argon2id; None: no login, keys only
    *_times(),
    Column("deleted_at", Time),
    Index(
        "users_live_email",
        sa.text("lower(email)"),
        unique=True,
        postgresql_where=sa.text("email <> '' AND deleted_at IS NULL"),
    ),
)

login_attempts = Table(
    "login_attempts",
    metadata,
    # Failed logins of a name or an address within its window, for the limit on their rate.
    Column("subject", Text, primary_key=True),
    Column("failures", Integer, nullable=False),
    Column("window_ends_at", Time, nullable=False, index=True),
)

api_keys = Table(
    "api_keys",
    metadata,
    _id(),
    Column("user_id", Uuid, ForeignKey("users.id"), nullable=False, index=True),
    Column("kind", Text, nullable=False, server_default="key"),
    Column("name", Text, nullable=False, server_default=""),
    Column("key_prefix", Text, nullable=False),  # the first characters, for people to tell keys
    Column("key_sha256", Text, nullable=False, unique=True),  # the key itself is never stored
    Column("scopes", ARRAY(Text), nullable=False, server_default="{}"),  # none: everything
    Column("expires_at", Time),
    Column("disabled", Boolean, nullable=False, server_default=sa.text("false")),
    Column("last_used_at", Time),
    *_times(),
    CheckConstraint("kind IN ('key','session')", name="known_kind"),  # made by a person, by a login
)

datasets = Table(
    "datasets",
    metadata,
    _id(),
    _public_id(),
    Column("user_id", Uuid, ForeignKey("users.id"), nullable=False),
    Column("name", Text, nullable=False),
    Column("description", Text, nullable=False, server_default=""),
    Column("notes", Text, nullable=False, server_default=""),
    Column("content_type", Text, nullable=False, server_default="documents"),
    Column("multi_label", Boolean, nullable=False, server_default=sa.text("true")),
    Column("default_splits", Boolean, nullable=False, server_default=sa.text("true")),
    Column("logo_sha256", Text, ForeignKey("blobs.sha256")),
    Column("logo_media_type", Text, nullable=False, server_default=""),
    *_times(),
    Column("deleted_at", Time),
    # One live name per owner, so that people may name a dataset instead of quoting its id.
    Index(
        "datasets_live_name",
        "user_id",
        "name",
        unique=True,
        postgresql_where=sa.text("deleted_at IS NULL"),
    ),
)

shares = Table(
    "shares",
    metadata,
    # Who besides its owner may read a dataset, or write it too.
    Column("dataset_id", Uuid, ForeignKey("datasets.id"), nullable=False),
    Column("user_id", Uuid, ForeignKey("users.id"), nullable=False, index=True),
    Column("role", Text, nullable=False),
    *_times(),
    sa.PrimaryKeyConstraint("dataset_id", "user_id"),
    CheckConstraint("role IN ('reader','writer')", name="known_role"),
)

dataset_versions = Table(
    "dataset_versions",
    metadata,
    _id(),
    _public_id(),
    Column("dataset_id", Uuid, ForeignKey("datasets.id"), nullable=False, index=True),
    Column("user_id", Uuid, ForeignKey("users.id"), nullable=False),
    Column("name", Text, nullable=False),
    Column("description", Text, nullable=False, server_default=""),
    Column("default_split", Uuid),
    Column("config", Text, nullable=False, server_default=""),
    *_times(),
    Column("deleted_at", Time),
)

dataset_splits = Table(
    "dataset_splits",
    metadata,
    _id(),
    Column("version_id", Uuid, ForeignKey("dataset_versions.id"), nullable=False),
    Column("user_id", Uuid, ForeignKey("users.id"), nullable=False),
    Column("name", Text, nullable=False),
    Column("description", Text, nullable=False, server_default=""),
    *_times(),
    Column("deleted_at", Time),  # its name is free again at once, its rows go step by step
    Column("recounted_at", Time),  # when its stats were last compared with a recount
    UniqueConstraint("version_id", "name"),
    UniqueConstraint("id", "version_id"),
    Index("dataset_splits_recounted", sa.text("recounted_at NULLS FIRST"), "id"),
)

labels = Table(
    "labels",
    metadata,
    _id(),
    Column("version_id", Uuid, ForeignKey("dataset_versions.id"), nullable=False),
    Column("user_id", Uuid, ForeignKey("users.id"), nullable=False),
    Column("name", Text, nullable=False),
    Column("normalised_name", Text, nullable=False),
    Column("description", Text, nullable=False, server_default=""),
    Column("color", Text, nullable=False),
    Column("index", Integer, nullable=False),
    Column("shortcut", Text, nullable=False, server_default=""),
    Column("post_processor_id", Uuid),  # who created it, None for a person
    *_times(),
    Column("deleted_at", Time),  # likewise
    UniqueConstraint("version_id", "normalised_name"),
    UniqueConstraint("version_id", "index"),
    UniqueConstraint("id", "version_id"),
)

blobs = Table(
    "blobs",
    metadata,
    Column("sha256", Text, primary_key=True),
    Column("size_bytes", BigInteger, nullable=False),
    Column("created_at", Time, nullable=False, server_default=NOW),
    CheckConstraint("sha256 ~ '^[0-9a-f]{64}$'", name="sha256_is_hex"),  # it names a file
)

blob_owners = Table(
    "blob_owners",
    metadata,
    # Who stored a file by itself; a message may name only a blob of its user.
    Column("user_id", Uuid, ForeignKey("users.id"), nullable=False),
    Column("sha256", Text, ForeignKey("blobs.sha256"), nullable=False),
    Column("created_at", Time, nullable=False, server_default=NOW),
    sa.PrimaryKeyConstraint("user_id", "sha256"),
)

dataset_items = Table(
    "dataset_items",
    metadata,
    _id(),
    Column("dataset_id", Uuid, ForeignKey("datasets.id"), nullable=False),
    Column("user_id", Uuid, ForeignKey("users.id"), nullable=False),
    Column("name", Text, nullable=False, server_default=""),
    Column("description", Text, nullable=False, server_default=""),
    Column("text", Text),
    Column("text_sha256", Text),
    # A person wrote the text over what was there: no model writes over it.
    Column("text_edited", Boolean, nullable=False, server_default=sa.text("false")),
    Column("extension", Text, nullable=False, server_default=""),
    Column("media_type", Text, nullable=False, server_default=""),
    Column("content_sha256", Text, ForeignKey("blobs.sha256")),
    Column("size_bytes", BigInteger),
    Column("width", Integer),  # of the upright image, pixels
    Column("height", Integer),
    Column("duration_s", Double),
    Column("page_count", Integer),
    Column("metadata", Text, nullable=False, server_default=""),
    Column("version", Integer, nullable=False, server_default="0"),  # +1 at each change
    *_times(),
    Column("deleted_at", Time),
    CheckConstraint("(text IS NULL) = (text_sha256 IS NULL)", name="text_has_hash"),
    CheckConstraint("(content_sha256 IS NULL) = (size_bytes IS NULL)", name="file_has_size"),
    Index("dataset_items_dataset", "dataset_id", "created_at", "id"),
    # Who has a file: for messages that name one by its hash.
    Index(
        "dataset_items_content",
        "content_sha256",
        "user_id",
        postgresql_where=sa.text("content_sha256 IS NOT NULL"),
    ),
)

item_splits = Table(
    "item_splits",
    metadata,
    Column("split_id", Uuid, nullable=False),
    Column("item_id", Uuid, ForeignKey("dataset_items.id"), nullable=False),
    Column("version_id", Uuid, nullable=False),
    sa.PrimaryKeyConstraint("split_id", "item_id"),
    sa.ForeignKeyConstraint(
        ["split_id", "version_id"], ["dataset_splits.id", "dataset_splits.version_id"]
    ),
    Index("item_splits_item", "item_id", "version_id"),
    # For the list of a version's items in their order.
    Index("item_splits_version", "version_id", "item_id", "split_id"),
)

unlabelled_items = Table(
    "unlabelled_items",
    metadata,
    # Members of splits without a live annotation in the version, for the list of what is left to
    # do: derived, and kept by triggers on memberships and annotations, whoever writes those.
    Column("split_id", Uuid, nullable=False),
    Column("item_id", Uuid, nullable=False),
    sa.PrimaryKeyConstraint("split_id", "item_id"),
    # Rows go from the front, where every list begins.
    postgresql_with={"autovacuum_vacuum_scale_factor": 0.02, "autovacuum_vacuum_threshold": 500},
)

split_overlaps = Table(
    "split_overlaps",
    metadata,
    # Items that belong to several splits of a version, kept likewise: where there are none, what is
    # counted in splits adds up.
    Column("version_id", Uuid, nullable=False),
    Column("item_id", Uuid, nullable=False),
    sa.PrimaryKeyConstraint("version_id", "item_id"),
)

item_states = Table(
    "item_states",
    metadata,
    # What a client keeps about an item in a version; no row: never written, version 0.
    Column("version_id", Uuid, ForeignKey("dataset_versions.id"), nullable=False),
    Column("item_id", Uuid, ForeignKey("dataset_items.id"), nullable=False),
    Column("id", Uuid, nullable=False, unique=True),
    Column("user_id", Uuid, ForeignKey("users.id"), nullable=False),
    Column("state", Text, nullable=False),
    Column("version", Integer, nullable=False),  # +1 at each write
    *_times(),
    sa.PrimaryKeyConstraint("version_id", "item_id"),
    CheckConstraint("version >= 1", name="version_is_positive"),
    Index("item_states_item", "item_id"),  # for the removal of items
)

annotations = Table(
    "annotations",
    metadata,
    _id(),
    Column("version_id", Uuid, nullable=False),
    Column("item_id", Uuid, ForeignKey("dataset_items.id"), nullable=False),
    Column("label_id", Uuid, nullable=False),
    Column("split_id", Uuid),  # provenance only: stats count memberships
    Column("user_id", Uuid, nullable=False),
    Column("kind", Text, nullable=False),
    Column("geometry", JSONB),
    Column("coordinates", Text, nullable=False, server_default=""),
    Column("text", Text),
    Column("page", Integer),
    Column("score", Double),
    Column("source", Text, nullable=False),
    Column("post_processor_id", Uuid),
    Column("job_id", Uuid),  # no foreign key: jobs are pruned, annotations stay
    Column("inference_id", Uuid),  # likewise
    Column("model_version", Text, nullable=False, server_default=""),
    Column("review", Text, nullable=False, server_default="suggested"),
    Column("fingerprint", Text),  # of the model's own prediction; None for a person's
    Column("origin", JSONB),  # of an imported one: what it was where it was exported
    *_times(),
    Column("deleted_at", Time),  # tombstone of a suggestion that a person deleted
    # A label of another version cannot be attached; the version row itself is never locked.
    sa.ForeignKeyConstraint(["label_id", "version_id"], ["labels.id", "labels.version_id"]),
    CheckConstraint(
        "kind IN ('class','bbox','polygon','keypoints','span','segment')", name="known_kind"
    ),
    CheckConstraint("source IN ('human','model','inference','import')", name="known_source"),
    CheckConstraint("review IN ('suggested','accepted','edited','rejected')", name="known_review"),
    # What a person rejects leaves a tombstone, so that it neither counts nor returns.
    CheckConstraint("review <> 'rejected' OR deleted_at IS NOT NULL", name="rejected_is_deleted"),
    CheckConstraint("score BETWEEN 0 AND 1", name="score_in_range"),
    CheckConstraint(
        "(source = 'model') = (post_processor_id IS NOT NULL)", name="model_has_author"
    ),
    CheckConstraint(
        "(source = 'inference') = (inference_id IS NOT NULL)", name="inference_has_origin"
    ),
    CheckConstraint(
        "(source IN ('model','inference')) = (fingerprint IS NOT NULL)", name="has_fingerprint"
    ),
    CheckConstraint("origin IS NULL OR source = 'import'", name="origin_is_imported"),
    # Serves look-ups by item and makes a doubled model output impossible; persons' rows have no
    # fingerprint and so never collide.
    Index(
        "annotations_item_output",
        "item_id",
        "version_id",
        "post_processor_id",
        "fingerprint",
        unique=True,
    ),
    # The same for predictions made elsewhere, whoever sent them.
    Index(
        "annotations_inference_output",
        "item_id",
        "version_id",
        "fingerprint",
        unique=True,
        postgresql_where=sa.text("source = 'inference'"),
    ),
    # For lists by label, which need not look at the rows, and for the deletion of a label.
    Index("annotations_label", "label_id", "item_id", "deleted_at"),
)

label_stats = Table(
    "label_stats",
    metadata,
    Column("split_id", Uuid, nullable=False),
    Column("bucket", Text, nullable=False),
    Column("label_id", Uuid),
    Column("annotation_count", BigInteger, nullable=False),
    Column("item_count", BigInteger, nullable=False),
    Column("updated_at", Time, nullable=False, server_default=NOW),
    CheckConstraint("bucket IN ('label','unlabelled','total')", name="known_bucket"),
    CheckConstraint("(bucket = 'label') = (label_id IS NOT NULL)", name="label_has_id"),
    Index(
        "label_stats_key",
        "split_id",
        "bucket",
        "label_id",
        unique=True,
        postgresql_nulls_not_distinct=True,
    ),
)

label_stat_deltas = Table(
    "label_stat_deltas",
    metadata,
    Column("id", BigInteger, sa.Identity(always=True), primary_key=True),
    Column("split_id", Uuid, nullable=False),
    Column("bucket", Text, nullable=False),
    Column("label_id", Uuid),
    Column("annotation_count", Integer, nullable=False),
    Column("item_count", Integer, nullable=False),
    Column("created_at", Time, nullable=False, server_default=NOW),
    Index("label_stat_deltas_split", "split_id"),
)

post_processors = Table(
    "post_processors",
    metadata,
    _id(),
    Column("dataset_id", Uuid, ForeignKey("datasets.id"), nullable=False),
    Column("user_id", Uuid, ForeignKey("users.id"), nullable=False),
    Column("name", Text, nullable=False),
    Column("description", Text, nullable=False, server_default=""),
    Column("model_type", Text, nullable=False),
    Column("runner", Text, nullable=False),
    Column("runner_config", JSONB, nullable=False, server_default="{}"),
    Column("model_id", Uuid),  # the model that runner and options were taken from, if any
    Column("model_version", Text, nullable=False, server_default=""),
    Column("reads", Text, nullable=False),
    Column("media_types", ARRAY(Text), nullable=False),
    Column("enabled", Boolean, nullable=False, server_default=sa.text("true")),
    Column("order", Integer, nullable=False, server_default="0"),
    Column("output_target", Text, nullable=False),
    Column("auto_create_labels", Boolean, nullable=False, server_default=sa.text("true")),
    Column("max_new_labels", Integer, nullable=False, server_default="100"),
    Column("confidence_threshold", Double, nullable=False, server_default="0"),
    Column("keep_unscored", Boolean, nullable=False, server_default=sa.text("true")),
    Column("file_types", ARRAY(Text), nullable=False, server_default="{}"),
    Column("splits", ARRAY(Text), nullable=False, server_default="{}"),
    Column("label_mapping", JSONB, nullable=False, server_default="{}"),
    Column("label_prefix", Text, nullable=False, server_default=""),
    Column("batch_size", Integer, nullable=False, server_default="200"),
    Column("concurrency_cap", Integer),
    Column("timeout_s", Double, nullable=False, server_default="300"),
    Column("max_attempts", SmallInteger, nullable=False, server_default="3"),
    Column("on_failure", Text, nullable=False, server_default="continue"),
    Column("paused_by_operator", Boolean, nullable=False, server_default=sa.text("false")),
    *_times(),
    Column("deleted_at", Time),
    CheckConstraint("confidence_threshold BETWEEN 0 AND 1", name="threshold_in_range"),
    CheckConstraint("output_target IN ('text','annotations','both')", name="known_target"),
    CheckConstraint("on_failure IN ('continue','stop')", name="known_on_failure"),
    CheckConstraint("reads IN ('file','text','any')", name="known_reads"),
    CheckConstraint("batch_size BETWEEN 1 AND 1000", name="batch_size_in_range"),
    CheckConstraint("max_attempts BETWEEN 1 AND 100", name="max_attempts_in_range"),
    CheckConstraint("concurrency_cap >= 1", name="cap_is_positive"),
    # A row that no worker could read would have none of its jobs run, or stop uploads.
    CheckConstraint("timeout_s > 0 AND timeout_s <= 86400", name="timeout_in_range"),
    CheckConstraint("max_new_labels >= 0", name="new_labels_in_range"),
    CheckConstraint("jsonb_typeof(runner_config) = 'object'", name="config_is_object"),
    CheckConstraint(
        "jsonb_typeof(label_mapping) = 'object' AND NOT jsonb_path_exists(label_mapping, "
        '\'$.* ? (@.type() != "string" && @.type() != "null")\')',
        name="mapping_is_readable",
    ),
    CheckConstraint(
        "array_position(media_types, NULL) IS NULL AND array_position(file_types, NULL) IS NULL "
        "AND array_position(splits, NULL) IS NULL",
        name="lists_are_full",
    ),
    Index("post_processors_dataset", "dataset_id"),
    Index(
        "post_processors_live_name",
        "dataset_id",
        "name",
        unique=True,
        postgresql_where=sa.text("deleted_at IS NULL"),
    ),
)

# The pause by failures; the operator's is a column of its own, and neither lifts the other. Not in
# post_processors: its rows change with their settings alone, and what changed since an answer was
# mapped is seen by that.
post_processor_circuits = Table(
    "post_processor_circuits",
    metadata,
    Column(
        "post_processor_id",
        Uuid,
        ForeignKey("post_processors.id", ondelete="CASCADE"),
        primary_key=True,
    ),
    Column("failures", Integer, nullable=False, server_default="0"),  # attempts in a row
    Column("trips", Integer, nullable=False, server_default="0"),  # openings since the last answer
    Column("reason", Text, nullable=False, server_default=""),
    Column("opened_at", Time),
    Column("open_until", Time),
    CheckConstraint("failures >= 0 AND trips >= 0", name="circuit_counts"),
)

post_processor_jobs = Table(
    "post_processor_jobs",
    metadata,
    _id(),
    Column("post_processor_id", Uuid, ForeignKey("post_processors.id"), nullable=False),
    Column("item_id", Uuid, ForeignKey("dataset_items.id"), nullable=False),
    Column("version_id", Uuid, nullable=False),
    Column("user_id", Uuid, nullable=False),
    Column("status", Text, nullable=False, server_default="pending"),
    Column("ready", Boolean, nullable=False),
    Column("order", Integer, nullable=False),
    Column("priority", SmallInteger, nullable=False, server_default="0"),
    Column("run_at", Time, nullable=False, server_default=NOW),
    Column("attempts", SmallInteger, nullable=False, server_default="0"),
    Column("max_attempts", SmallInteger, nullable=False),
    Column("lease_token", BigInteger, nullable=False, server_default="0"),
    Column("lease_owner", Uuid),
    Column("batch_id", Uuid),
    Column("lease_expires_at", Time),  # in no index, so that heartbeats stay heap-only
    Column("deadline_at", Time),
    Column("input_revision", Text),
    Column("rerun_requested", Boolean, nullable=False, server_default=sa.text("false")),
    Column("crash_count", SmallInteger, nullable=False, server_default="0"),
    Column("snooze_count", SmallInteger, nullable=False, server_default="0"),
    # Whether it runs in a process of its model's own: a worker died, or hung, with it in the model.
    Column("is_suspect", Boolean, nullable=False, server_default=sa.text("false")),
    Column("reason", Text, nullable=False, server_default=""),
    Column("error", Text, nullable=False, server_default=""),
    Column("dropped", JSONB),  # predictions not applied, counted by reason
    Column("traceparent", Text),
    Column("created_at", Time, nullable=False, server_default=NOW),
    Column("started_at", Time),
    Column("completed_at", Time),
    CheckConstraint("status IN ('pending','processing','completed','failed')", name="known_status"),
    CheckConstraint("priority IN (0, 1)", name="known_priority"),  # interactive, bulk
    CheckConstraint("attempts BETWEEN 0 AND max_attempts", name="attempts_in_range"),
    CheckConstraint("status <> 'pending' OR attempts < max_attempts", name="pending_can_run"),
    CheckConstraint("(status = 'processing') = (lease_owner IS NOT NULL)", name="lease_matches"),
    CheckConstraint("(lease_owner IS NULL) = (lease_expires_at IS NULL)", name="lease_has_expiry"),
    CheckConstraint(
        "(status IN ('completed','failed')) = (completed_at IS NOT NULL)", name="end_matches"
    ),
    CheckConstraint("NOT rerun_requested OR status = 'processing'", name="rerun_is_running"),
    # One row that cannot be read or counted on would stop every claim of its post-processor.
    CheckConstraint(
        "run_at >= TIMESTAMPTZ '1970-01-01 00:00:00+00' "
        "AND run_at < TIMESTAMPTZ '9999-01-01 00:00:00+00' "
        "AND created_at >= TIMESTAMPTZ '1970-01-01 00:00:00+00' "
        "AND created_at < TIMESTAMPTZ '9999-01-01 00:00:00+00'",
        name="times_are_readable",
    ),
    CheckConstraint(
        "lease_token BETWEEN 0 AND 4611686018427387904 AND crash_count BETWEEN 0 AND 1000 "
        "AND snooze_count BETWEEN 0 AND 10000",
        name="counts_can_grow",
    ),
    Index(
        "post_processor_jobs_claim",
        "post_processor_id",
        "priority",
        "run_at",
        "id",
        postgresql_where=sa.text("status = 'pending' AND ready"),
    ),
    Index(
        "post_processor_jobs_live",
        "item_id",
        "version_id",
        "post_processor_id",
        unique=True,
        postgresql_where=sa.text("status IN ('pending','processing')"),
    ),
    Index(
        "post_processor_jobs_inflight",
        "post_processor_id",
        "id",
        postgresql_where=sa.text("status = 'processing'"),
    ),
    Index(
        "post_processor_jobs_failed",
        "post_processor_id",
        "id",
        postgresql_where=sa.text("status = 'failed'"),
    ),
    # Jobs that wait for an earlier one, for the sweep that repairs a missed wake-up.
    Index(
        "post_processor_jobs_waiting",
        "item_id",
        postgresql_where=sa.text("status = 'pending' AND NOT ready"),
    ),
    # Jobs that run with their own group only; nearly always none.
    Index(
        "post_processor_jobs_suspects",
        "post_processor_id",
        "priority",
        "run_at",
        "id",
        postgresql_where=sa.text("status = 'pending' AND is_suspect"),
    ),
    Index("post_processor_jobs_item", "item_id", "version_id"),
    # For lists of items by the state of their jobs; those that run now are few, and found above.
    Index(
        "post_processor_jobs_version",
        "version_id",
        "status",
        "item_id",
        postgresql_where=sa.text("status <> 'processing'"),
    ),
    # For lists of jobs by state; those that run or failed are found above.
    Index(
        "post_processor_jobs_listed",
        "post_processor_id",
        "status",
        "id",
        postgresql_where=sa.text("status IN ('pending','completed')"),
    ),
    postgresql_with={
        "fillfactor": 80,
        "autovacuum_vacuum_scale_factor": 0.02,
        "autovacuum_vacuum_threshold": 200,
        "autovacuum_analyze_scale_factor": 0.02,
        "autovacuum_vacuum_cost_limit": 2000,
        "autovacuum_vacuum_cost_delay": 1,
    },
)

# Batches that are in a model which shares its worker's process; who finds one here when its lease
# has run out knows what the worker died of, perhaps. Unlogged: a crash of the server empties it.
model_entries = Table(
    "model_entries",
    metadata,
    Column("batch_id", Uuid, primary_key=True),
    Column("entered_at", Time, nullable=False, server_default=NOW),
    prefixes=["UNLOGGED"],
)

job_results = Table(
    "job_results",
    metadata,
    # By (version, item, post-processor), not by job: results outlive pruned jobs.
    Column("version_id", Uuid, nullable=False),
    Column("item_id", Uuid, ForeignKey("dataset_items.id"), nullable=False),
    Column("post_processor_id", Uuid, nullable=False),
    Column("job_id", Uuid, nullable=False),
    Column("raw", JSONB, nullable=False),
    Column("model_version", Text, nullable=False),
    Column("input_revision", Text, nullable=False),
    Column("text_sha256", Text),  # of the item's text once the answer was written
    Column("refused", Integer, nullable=False, server_default="0"),  # values that raw lacks
    Column("created_at", Time, nullable=False, server_default=NOW),
    sa.PrimaryKeyConstraint("item_id", "version_id", "post_processor_id"),
)

job_attempts = Table(
    "job_attempts",
    metadata,
    # Append-only history, one row at the end of each attempt.
    Column("job_id", Uuid, nullable=False),
    Column("lease_token", BigInteger, nullable=False),
    Column("attempt", SmallInteger, nullable=False),
    Column("worker_id", Uuid, nullable=False),
    Column("started_at", Time, nullable=False),
    Column("ended_at", Time, nullable=False),
    Column("cause", Text, nullable=False),  # one of domain.job.EDGES
    Column("reason", Text, nullable=False),
    Column("error", Text, nullable=False),
    sa.PrimaryKeyConstraint("job_id", "lease_token"),
    # Rows lie in the order of their end, so a few bytes for many pages find those of a moment ago.
    Index(
        "job_attempts_ended",
        "ended_at",
        postgresql_using="brin",
        postgresql_with={"pages_per_range": 32, "autosummarize": True},
    ),
)

idempotency_keys = Table(
    "idempotency_keys",
    metadata,
    Column("user_id", Uuid, nullable=False),
    Column("key", Text, nullable=False),
    Column("request_sha256", Text, nullable=False),
    Column("ids", ARRAY(Uuid), nullable=False),  # the items, the job or the operation it stands for
    Column("created_at", Time, nullable=False, server_default=NOW),
    sa.PrimaryKeyConstraint("user_id", "key"),
    Index("idempotency_keys_created", "created_at"),  # for the removal of old ones
)

inferences = Table(
    "inferences",
    metadata,
    # A prediction made elsewhere, and the item it became.
    _id(),
    Column("dataset_id", Uuid, ForeignKey("datasets.id"), nullable=False),
    Column("user_id", Uuid, nullable=False),
    Column("external_id", Text, nullable=False),  # its id where it was made, else a content hash
    Column("item_id", Uuid, ForeignKey("dataset_items.id"), nullable=False, index=True),
    Column("raw", JSONB, nullable=False),  # as it was given
    Column("created_at", Time, nullable=False, server_default=NOW),
    UniqueConstraint("dataset_id", "external_id"),
)

models = Table(
    "models",
    metadata,
    # A person's own model: a runner with options, or none, which only collects inferences.
    _id(),
    Column("user_id", Uuid, ForeignKey("users.id"), nullable=False),
    Column("name", Text, nullable=False),
    Column("description", Text, nullable=False, server_default=""),
    Column("notes", Text, nullable=False, server_default=""),
    Column("kind", Text, nullable=False, server_default=""),
    Column("config", Text, nullable=False, server_default=""),  # JSON text
    Column("application_id", Text, nullable=False, server_default=""),
    Column("active_version_id", Uuid),
    Column("auto_convert", Boolean, nullable=False, server_default=sa.text("true")),
    Column("privacy_enabled", Boolean, nullable=False, server_default=sa.text("false")),
    *_times(),
    Column("deleted_at", Time),
    Index(
        "models_live",
        "user_id",
        "id",
        postgresql_where=sa.text("deleted_at IS NULL"),
    ),
)

model_versions = Table(
    "model_versions",
    metadata,
    _id(),
    Column("model_id", Uuid, ForeignKey("models.id"), nullable=False),
    Column("user_id", Uuid, ForeignKey("users.id"), nullable=False),
    Column("name", Text, nullable=False),
    Column("description", Text, nullable=False, server_default=""),
    Column("version", Text, nullable=False, server_default=""),
    Column("version_number", Integer, nullable=False),
    Column("config", Text, nullable=False, server_default=""),  # stands for the model's where set
    Column("application_id", Text, nullable=False, server_default=""),
    Column("dataset_id", Text, nullable=False, server_default=""),  # what it was made from, as told
    Column("dataset_version_id", Text, nullable=False, server_default=""),
    Column("job_id", Text, nullable=False, server_default=""),
    Column("metrics", JSONB, nullable=False, server_default="[]"),
    *_times(),
    Column("deleted_at", Time),
    UniqueConstraint("model_id", "version_number"),
)

model_inferences = Table(
    "model_inferences",
    metadata,
    # What a model said, here or elsewhere, with what it was asked, until it becomes an item.
    _id(),
    Column("user_id", Uuid, ForeignKey("users.id"), nullable=False),
    Column("model_id", Uuid, nullable=False),  # no foreign key: built-in models have no row
    Column("model_version_id", Uuid),  # likewise
    Column("name", Text, nullable=False, server_default=""),  # the text, or the file's name
    Column("description", Text, nullable=False, server_default=""),
    Column("prediction", Text, nullable=False, server_default=""),
    Column("confidence", Double),
    Column("extension", Text, nullable=False, server_default=""),
    Column("error_reported", Boolean, nullable=False, server_default=sa.text("false")),
    Column("error", Text, nullable=False, server_default=""),
    Column("application_id", Text, nullable=False, server_default=""),
    Column("inference_host", Text, nullable=False, server_default=""),
    Column("inference_time", Text, nullable=False, server_default=""),
    Column("end_to_end_time", Text, nullable=False, server_default=""),
    Column("result", Text, nullable=False, server_default=""),
    Column("items", JSONB, nullable=False, server_default="[]"),  # its predictions
    Column("hidden", Boolean, nullable=False, server_default=sa.text("false")),
    Column("privacy_enabled", Boolean, nullable=False, server_default=sa.text("false")),
    Column("config", Text, nullable=False, server_default="{}"),
    Column("content_sha256", Text, ForeignKey("blobs.sha256")),
    Column("media_type", Text, nullable=False, server_default=""),
    Column("dataset_item_id", Uuid),  # what it became last; no foreign key: items may go
    *_times(),
    Index("model_inferences_model", "user_id", "model_id", "id"),
    Index("model_inferences_version", "user_id", "model_version_id", "id"),
    # Those that nobody has added yet: what is asked for most.
    Index(
        "model_inferences_open",
        "user_id",
        "model_id",
        "id",
        postgresql_where=sa.text("dataset_item_id IS NULL"),
    ),
)

operations = Table(
    "operations",
    metadata,
    # Long work that is not a model run: leased and fenced like jobs, in resumable steps.
    _id(),
    Column("user_id", Uuid, ForeignKey("users.id"), nullable=False),
    Column("dataset_id", Uuid, ForeignKey("datasets.id")),
    Column("kind", Text, nullable=False),
    Column("arguments", JSONB, nullable=False),
    Column("status", Text, nullable=False, server_default="pending"),
    Column("run_at", Time, nullable=False, server_default=NOW),
    Column("cursor", BigInteger, nullable=False, server_default="0"),  # where the next step begins
    Column("total", BigInteger),  # units of work, None while unknown
    Column("done", BigInteger, nullable=False, server_default="0"),
    Column("counts", JSONB, nullable=False, server_default="{}"),  # what was done, by word
    Column("result", JSONB, nullable=False, server_default="{}"),  # what it made, and what it left
    Column("attempts", SmallInteger, nullable=False, server_default="0"),  # without progress
    Column("max_attempts", SmallInteger, nullable=False, server_default="5"),
    Column("lease_token", BigInteger, nullable=False, server_default="0"),
    Column("lease_owner", Uuid),
    Column("lease_expires_at", Time),
    Column("reason", Text, nullable=False, server_default=""),
    Column("error", Text, nullable=False, server_default=""),
    Column("created_at", Time, nullable=False, server_default=NOW),
    Column("started_at", Time),
    Column("completed_at", Time),
    CheckConstraint("status IN ('pending','processing','completed','failed')", name="known_status"),
    CheckConstraint("(status = 'processing') = (lease_owner IS NOT NULL)", name="lease_matches"),
    CheckConstraint("(lease_owner IS NULL) = (lease_expires_at IS NULL)", name="lease_has_expiry"),
    CheckConstraint(
        "(status IN ('completed','failed')) = (completed_at IS NOT NULL)", name="end_matches"
    ),
    CheckConstraint(
        "jsonb_typeof(arguments) = 'object' AND jsonb_typeof(counts) = 'object' "
        "AND jsonb_typeof(result) = 'object'",
        name="objects_are_objects",
    ),
    Index("operations_user", "user_id", "id"),
    Index(
        "operations_live",
        "run_at",
        "id",
        postgresql_where=sa.text("status IN ('pending','processing')"),
    ),
)

dead_letters = Table(
    "dead_letters",
    metadata,
    # Messages that cannot be followed, kept until somebody mends and replays them.
    _id(),
    Column("message_id", Text, nullable=False),
    Column("actor", Text, nullable=False),
    Column("user_id", Uuid),  # whose message it is, where that could be told
    Column("key", Text, nullable=False, server_default=""),
    Column("field", Text, nullable=False),
    Column("error", Text, nullable=False),
    Column("body", Text, nullable=False),  # JSON of the arguments, secrets taken out
    Column("body_sha256", Text, nullable=False),
    Column("is_cut", Boolean, nullable=False, server_default=sa.text("false")),
    Column("created_at", Time, nullable=False, server_default=NOW),
    Column("replayed_at", Time),
    # A redelivered message is the same dead letter.
    UniqueConstraint("message_id", "body_sha256"),
    Index("dead_letters_waiting", "id", postgresql_where=sa.text("replayed_at IS NULL")),
)

workers = Table(
    "workers",
    metadata,
    Column("id", Uuid, primary_key=True),  # random per boot
    Column("host", Text, nullable=False),
    Column("pid", Integer, nullable=False),
    Column("version", Text, nullable=False),
    Column("slots", Integer, nullable=False),
    Column("draining", Boolean, nullable=False, server_default=sa.text("false")),
    Column("started_at", Time, nullable=False, server_default=NOW),
    Column("seen_at", Time, nullable=False, server_default=NOW),
    # Since when the server has answered some worker without an interruption, as far as it knows.
    Column("steady_since", Time, nullable=False, server_default=NOW),
    Column("lease_s", Double, nullable=False, server_default="30"),  # of the jobs it claims
)
