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


def upgrade() -> None:
    _accounts()
    _datasets()
    _items()
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
    op.create_index("annotations_label", "annotations", ["label_id", "item_id"])
