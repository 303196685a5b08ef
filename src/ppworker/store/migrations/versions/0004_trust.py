"""What faults demand: the pause by failures, suspects, batches in a model."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_TIME = postgresql.TIMESTAMP(timezone=True)


def upgrade() -> None:
    _circuits()
    _readable()
    _suspects()
    _keeping()
    _recounts()
    _steadiness()


def _circuits() -> None:
    op.create_table(
        "post_processor_circuits",
        sa.Column("post_processor_id", sa.Uuid(), nullable=False),
        sa.Column("failures", sa.Integer(), server_default="0", nullable=False),
        sa.Column("trips", sa.Integer(), server_default="0", nullable=False),
        sa.Column("reason", sa.Text(), server_default="", nullable=False),
        sa.Column("opened_at", _TIME),
        sa.Column("open_until", _TIME),
        sa.CheckConstraint("failures >= 0 AND trips >= 0", name="circuit_counts"),
        sa.ForeignKeyConstraint(["post_processor_id"], ["post_processors.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("post_processor_id"),
    )
    op.drop_column("post_processors", "circuit_until")
    op.add_column(
        "post_processor_jobs",
        sa.Column("snooze_count", sa.SmallInteger(), server_default="0", nullable=False),
    )


def _readable() -> None:
    """Refuse rows that no worker can read or go on with."""
    op.drop_constraint(op.f("blobs_sha256_is_hex"), "blobs")
    for table, name, rule in _RULES:
        op.create_check_constraint(op.f(f"{table}_{name}"), table, rule)


_EARLIEST, _LATEST = (f"TIMESTAMPTZ '{day} 00:00:00+00'" for day in ("1970-01-01", "9999-01-01"))
_RULES = (
    ("blobs", "sha256_is_hex", "sha256 ~ '^[0-9a-f]{64}$'"),
    ("post_processors", "timeout_in_range", "timeout_s > 0 AND timeout_s <= 86400"),
    ("post_processors", "new_labels_in_range", "max_new_labels >= 0"),
    ("post_processors", "config_is_object", "jsonb_typeof(runner_config) = 'object'"),
    (
        "post_processors",
        "mapping_is_readable",
        (
            "jsonb_typeof(label_mapping) = 'object' AND NOT jsonb_path_exists(label_mapping, "
            '\'$.* ? (@.type() != "string" && @.type() != "null")\')'
        ),
    ),
    (
        "post_processors",
        "lists_are_full",
        (
            "array_position(media_types, NULL) IS NULL "
            "AND array_position(file_types, NULL) IS NULL "
            "AND array_position(splits, NULL) IS NULL"
        ),
    ),
    (
        "post_processor_jobs",
        "times_are_readable",
        (
            f"run_at >= {_EARLIEST} AND run_at < {_LATEST} "
            f"AND created_at >= {_EARLIEST} AND created_at < {_LATEST}"
        ),
    ),
    (
        "post_processor_jobs",
        "counts_can_grow",
        (
            "lease_token BETWEEN 0 AND 4611686018427387904 AND crash_count BETWEEN 0 AND 1000 "
            "AND snooze_count BETWEEN 0 AND 10000"
        ),
    ),
    (
        "operations",
        "objects_are_objects",
        (
            "jsonb_typeof(arguments) = 'object' AND jsonb_typeof(counts) = 'object' "
            "AND jsonb_typeof(result) = 'object'"
        ),
    ),
)


def _suspects() -> None:
    op.add_column(
        "post_processor_jobs",
        sa.Column("is_suspect", sa.Boolean(), server_default=sa.text("false"), nullable=False),
    )
    op.create_index(
        "post_processor_jobs_suspects",
        "post_processor_jobs",
        ["post_processor_id", "priority", "run_at", "id"],
        postgresql_where=sa.text("status = 'pending' AND is_suspect"),
    )
    op.create_table(
        "model_entries",
        sa.Column("batch_id", sa.Uuid(), nullable=False),
        sa.Column("entered_at", _TIME, server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("batch_id"),
        prefixes=["UNLOGGED"],
    )


def _keeping() -> None:
    op.create_index("idempotency_keys_created", "idempotency_keys", ["created_at"])


def _recounts() -> None:
    op.add_column("dataset_splits", sa.Column("recounted_at", _TIME))
    op.create_index(
        "dataset_splits_recounted", "dataset_splits", [sa.text("recounted_at NULLS FIRST"), "id"]
    )


def _steadiness() -> None:
    op.add_column(
        "workers",
        sa.Column("steady_since", _TIME, server_default=sa.text("now()"), nullable=False),
    )
    op.add_column("workers", sa.Column("lease_s", sa.Double(), server_default="30", nullable=False))
