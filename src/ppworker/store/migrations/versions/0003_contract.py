"""What the public contract needs: accounts, shares, item states, deletion in steps, results."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_TIME = postgresql.TIMESTAMP(timezone=True)


def _times() -> list[sa.Column[object]]:
    return [
        sa.Column("created_at", _TIME, server_default=sa.text("now()"), nullable=False),
        sa.Column("updated_at", _TIME, server_default=sa.text("now()"), nullable=False),
    ]


def _text(name: str) -> sa.Column[str]:
    return sa.Column(name, sa.Text(), server_default="", nullable=False)


def _flag(name: str, default: str = "false") -> sa.Column[bool]:
    return sa.Column(name, sa.Boolean(), server_default=sa.text(default), nullable=False)


def upgrade() -> None:
    _accounts()
    _datasets()
    _items()
    _lists()
    _models()
    op.add_column(
        "operations",
        sa.Column("result", postgresql.JSONB(), server_default="{}", nullable=False),
    )


def _accounts() -> None:
    for name in ("email", "name", "firstname"):
        op.add_column("users", _text(name))
    op.add_column("users", sa.Column("password_hash", sa.Text(), nullable=True))
    op.add_column("users", sa.Column("deleted_at", _TIME, nullable=True))
    op.create_index(
        "users_live_email",
        "users",
        [sa.text("lower(email)")],
        unique=True,
        postgresql_where=sa.text("email <> '' AND deleted_at IS NULL"),
    )
    op.add_column("api_keys", sa.Column("kind", sa.Text(), server_default="key", nullable=False))
    op.create_check_constraint(op.f("api_keys_known_kind"), "api_keys", "kind IN ('key','session')")
    op.create_table(
        "login_attempts",
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("window_ends_at", _TIME, nullable=False),
        sa.PrimaryKeyConstraint("subject", name=op.f("login_attempts_pkey")),
    )
    op.create_index(op.f("login_attempts_window_ends_at"), "login_attempts", ["window_ends_at"])


def _datasets() -> None:
    op.add_column(
        "datasets",
        sa.Column("default_splits", sa.Boolean(), server_default=sa.text("true"), nullable=False),
    )
    op.add_column("datasets", sa.Column("logo_sha256", sa.Text(), nullable=True))
    op.create_foreign_key(
        op.f("datasets_logo_sha256_fkey"), "datasets", "blobs", ["logo_sha256"], ["sha256"]
    )
    op.add_column("datasets", _text("logo_media_type"))
    op.add_column("dataset_splits", sa.Column("deleted_at", _TIME, nullable=True))
    op.add_column("labels", sa.Column("deleted_at", _TIME, nullable=True))
    op.create_table(
        "shares",
        sa.Column("dataset_id", sa.UUID(), nullable=False),
        sa.Column("user_id", sa.UUID(), nullable=False),
        sa.Column("role", sa.Text(), nullable=False),
        *_times(),
        sa.CheckConstraint("role IN ('reader','writer')", name=op.f("shares_known_role")),
        sa.ForeignKeyConstraint(
            ["dataset_id"], ["datasets.id"], name=op.f("shares_dataset_id_fkey")
        ),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name=op.f("shares_user_id_fkey")),
        sa.PrimaryKeyConstraint("dataset_id", "user_id", name=op.f("shares_pkey")),
    )
    op.create_index(op.f("shares_user_id"), "shares", ["user_id"])


def _items() -> None:
    op.add_column(
        "dataset_items",
        sa.Column("text_edited", sa.Boolean(), server_default=sa.text("false"), nullable=False),
    )
    op.create_table(
        "item_states",
        sa.Column("version_id", sa.UUID(), nullable=False),
        sa.Column("item_id", sa.UUID(), nullable=False),
        sa.Column("id", sa.UUID(), nullable=False),
        sa.Column("user_id", sa.UUID(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        *_times(),
        sa.CheckConstraint("version >= 1", name=op.f("item_states_version_is_positive")),
        sa.ForeignKeyConstraint(
            ["version_id"], ["dataset_versions.id"], name=op.f("item_states_version_id_fkey")
        ),
        sa.ForeignKeyConstraint(
            ["item_id"], ["dataset_items.id"], name=op.f("item_states_item_id_fkey")
        ),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name=op.f("item_states_user_id_fkey")),
        sa.PrimaryKeyConstraint("version_id", "item_id", name=op.f("item_states_pkey")),
        sa.UniqueConstraint("id", name=op.f("item_states_id_key")),
    )
    op.create_index("item_states_item", "item_states", ["item_id"])
    op.create_index("annotations_label", "annotations", ["label_id", "item_id", "deleted_at"])
    op.add_column("annotations", sa.Column("origin", postgresql.JSONB(), nullable=True))
    op.create_check_constraint(
        op.f("annotations_origin_is_imported"),
        "annotations",
        "origin IS NULL OR source = 'import'",
    )


def _lists() -> None:
    """What long lists walk along."""
    op.create_index(
        "item_splits_version", "item_splits", ["version_id", "item_id", "split_id"], unique=False
    )
    op.create_index(
        "post_processor_jobs_version",
        "post_processor_jobs",
        ["version_id", "status", "item_id"],
        postgresql_where=sa.text("status <> 'processing'"),
    )
    op.create_index(
        "post_processor_jobs_listed",
        "post_processor_jobs",
        ["post_processor_id", "status", "id"],
        postgresql_where=sa.text("status IN ('pending','completed')"),
    )
    op.create_index("post_processors_dataset", "post_processors", ["dataset_id"])
    op.create_table(
        "unlabelled_items",
        sa.Column("split_id", sa.UUID(), nullable=False),
        sa.Column("item_id", sa.UUID(), nullable=False),
        sa.PrimaryKeyConstraint("split_id", "item_id", name=op.f("unlabelled_items_pkey")),
        postgresql_with={
            "autovacuum_vacuum_scale_factor": 0.02,
            "autovacuum_vacuum_threshold": 500,
        },
    )
    op.create_table(
        "split_overlaps",
        sa.Column("version_id", sa.UUID(), nullable=False),
        sa.Column("item_id", sa.UUID(), nullable=False),
        sa.PrimaryKeyConstraint("version_id", "item_id", name=op.f("split_overlaps_pkey")),
    )
    op.execute(_ALL)
    op.execute(_OVERLAPS)
    for name, body in _KEEPERS.items():
        op.execute(
            f"CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql SET enable_seqscan = off "
            "SET enable_hashjoin = off SET enable_mergejoin = off "
            f"AS $$ BEGIN {body} RETURN NULL; END $$"
        )
    for table, event, rows, name in _EVENTS:
        op.execute(
            f"CREATE TRIGGER {name}_{event.lower()} AFTER {event} ON {table} "
            f"REFERENCING {rows} TABLE AS changed FOR EACH STATEMENT EXECUTE FUNCTION {name}()"
        )


# Looked up one by one: plans are kept, and what is planned for few rows must do for many. As a
# join, 1,500 annotations at once took 440 ms in the first of these; so, 8.
_BARE = """(SELECT true FROM annotations a WHERE a.item_id = m.item_id
  AND a.version_id = m.version_id AND a.deleted_at IS NULL LIMIT 1) IS NULL"""
_ALL = f"""
INSERT INTO unlabelled_items SELECT m.split_id, m.item_id FROM item_splits m WHERE {_BARE}"""  # noqa: S608
_OVERLAPS = """
INSERT INTO split_overlaps SELECT DISTINCT c.version_id, c.item_id FROM item_splits c
WHERE (SELECT true FROM item_splits m WHERE m.item_id = c.item_id
  AND m.version_id = c.version_id AND m.split_id <> c.split_id LIMIT 1) IS NOT NULL"""
_ENTER = """
INSERT INTO unlabelled_items SELECT DISTINCT m.split_id, m.item_id FROM changed c
JOIN item_splits m ON m.item_id = c.item_id AND m.version_id = c.version_id
WHERE {which} {bare} ON CONFLICT DO NOTHING;
"""
_KEEPERS = {
    "annotations_written": """
DELETE FROM unlabelled_items WHERE ctid = ANY (ARRAY(
  SELECT u.place
  FROM (SELECT DISTINCT item_id, version_id FROM changed WHERE deleted_at IS NULL) c
  CROSS JOIN LATERAL (SELECT m.split_id FROM item_splits m
    WHERE m.item_id = c.item_id AND m.version_id = c.version_id OFFSET 0) m
  CROSS JOIN LATERAL (SELECT u.ctid AS place FROM unlabelled_items u
    WHERE u.split_id = m.split_id AND u.item_id = c.item_id OFFSET 0) u));
"""  # noqa: S608  constants
    + _ENTER.format(which="c.deleted_at IS NOT NULL AND", bare=_BARE),
    "annotations_gone": _ENTER.format(which="", bare=_BARE),
    "item_splits_joined": _ALL.replace("item_splits", "changed")
    + " ON CONFLICT DO NOTHING;"
    + _OVERLAPS.replace("item_splits c", "changed c")
    + " ON CONFLICT DO NOTHING;",
    "item_splits_left": """
DELETE FROM unlabelled_items u USING changed c
WHERE u.split_id = c.split_id AND u.item_id = c.item_id;
DELETE FROM split_overlaps o USING changed c
WHERE o.version_id = c.version_id AND o.item_id = c.item_id AND 2 > (SELECT count(*)
  FROM item_splits m WHERE m.item_id = o.item_id AND m.version_id = o.version_id);
""",
}
_EVENTS = (
    ("annotations", "INSERT", "NEW", "annotations_written"),
    ("annotations", "UPDATE", "NEW", "annotations_written"),
    ("annotations", "DELETE", "OLD", "annotations_gone"),
    ("item_splits", "INSERT", "NEW", "item_splits_joined"),
    ("item_splits", "DELETE", "OLD", "item_splits_left"),
)


def _models() -> None:
    op.add_column("post_processors", sa.Column("model_id", sa.UUID(), nullable=True))
    op.add_column("post_processors", _text("model_version"))
    op.create_table(
        "models",
        sa.Column("id", sa.UUID(), nullable=False),
        sa.Column("user_id", sa.UUID(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        *map(_text, ("description", "notes", "kind", "config", "application_id")),
        sa.Column("active_version_id", sa.UUID(), nullable=True),
        _flag("auto_convert", "true"),
        _flag("privacy_enabled"),
        *_times(),
        sa.Column("deleted_at", _TIME, nullable=True),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name=op.f("models_user_id_fkey")),
        sa.PrimaryKeyConstraint("id", name=op.f("models_pkey")),
    )
    op.create_index(
        "models_live", "models", ["user_id", "id"], postgresql_where=sa.text("deleted_at IS NULL")
    )
    op.create_table(
        "model_versions",
        sa.Column("id", sa.UUID(), nullable=False),
        sa.Column("model_id", sa.UUID(), nullable=False),
        sa.Column("user_id", sa.UUID(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        *map(_text, ("description", "version")),
        sa.Column("version_number", sa.Integer(), nullable=False),
        *map(_text, ("config", "application_id", "dataset_id", "dataset_version_id", "job_id")),
        sa.Column("metrics", postgresql.JSONB(), server_default="[]", nullable=False),
        *_times(),
        sa.Column("deleted_at", _TIME, nullable=True),
        sa.ForeignKeyConstraint(
            ["model_id"], ["models.id"], name=op.f("model_versions_model_id_fkey")
        ),
        sa.ForeignKeyConstraint(
            ["user_id"], ["users.id"], name=op.f("model_versions_user_id_fkey")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("model_versions_pkey")),
        sa.UniqueConstraint(
            "model_id", "version_number", name=op.f("model_versions_model_id_version_number_key")
        ),
    )
    _model_inferences()


def _model_inferences() -> None:
    op.create_table(
        "model_inferences",
        sa.Column("id", sa.UUID(), nullable=False),
        sa.Column("user_id", sa.UUID(), nullable=False),
        sa.Column("model_id", sa.UUID(), nullable=False),
        sa.Column("model_version_id", sa.UUID(), nullable=True),
        *map(_text, ("name", "description", "prediction")),
        sa.Column("confidence", sa.Double(), nullable=True),
        _text("extension"),
        _flag("error_reported"),
        *map(_text, ("error", "application_id", "inference_host", "inference_time")),
        *map(_text, ("end_to_end_time", "result")),
        sa.Column("items", postgresql.JSONB(), server_default="[]", nullable=False),
        _flag("hidden"),
        _flag("privacy_enabled"),
        sa.Column("config", sa.Text(), server_default="{}", nullable=False),
        sa.Column("content_sha256", sa.Text(), nullable=True),
        _text("media_type"),
        sa.Column("dataset_item_id", sa.UUID(), nullable=True),
        *_times(),
        sa.ForeignKeyConstraint(
            ["user_id"], ["users.id"], name=op.f("model_inferences_user_id_fkey")
        ),
        sa.ForeignKeyConstraint(
            ["content_sha256"],
            ["blobs.sha256"],
            name=op.f("model_inferences_content_sha256_fkey"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("model_inferences_pkey")),
    )
    for name, column in (("model", "model_id"), ("version", "model_version_id")):
        op.create_index(f"model_inferences_{name}", "model_inferences", ["user_id", column, "id"])
    op.create_index(
        "model_inferences_open",
        "model_inferences",
        ["user_id", "model_id", "id"],
        postgresql_where=sa.text("dataset_item_id IS NULL"),
    )
