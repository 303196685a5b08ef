"""What other programs come in by: keys, operations, inferences from outside, dead letters."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "dead_letters",
        sa.Column("id", sa.UUID(), nullable=False),
        sa.Column("message_id", sa.Text(), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("user_id", sa.UUID(), nullable=True),
        sa.Column("key", sa.Text(), server_default="", nullable=False),
        sa.Column("field", sa.Text(), nullable=False),
        sa.Column("error", sa.Text(), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.Column("body_sha256", sa.Text(), nullable=False),
        sa.Column("is_cut", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column(
            "created_at",
            postgresql.TIMESTAMP(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.Column("replayed_at", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("dead_letters_pkey")),
        sa.UniqueConstraint(
            "message_id", "body_sha256", name=op.f("dead_letters_message_id_body_sha256_key")
        ),
    )
    op.create_index(
        "dead_letters_waiting",
        "dead_letters",
        ["id"],
        unique=False,
        postgresql_where=sa.text("replayed_at IS NULL"),
    )
    op.create_table(
        "api_keys",
        sa.Column("id", sa.UUID(), nullable=False),
        sa.Column("user_id", sa.UUID(), nullable=False),
        sa.Column("name", sa.Text(), server_default="", nullable=False),
        sa.Column("key_prefix", sa.Text(), nullable=False),
        sa.Column("key_sha256", sa.Text(), nullable=False),
        sa.Column("scopes", postgresql.ARRAY(sa.Text()), server_default="{}", nullable=False),
        sa.Column("expires_at", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.Column("disabled", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("last_used_at", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.Column(
            "created_at",
            postgresql.TIMESTAMP(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.Column(
            "updated_at",
            postgresql.TIMESTAMP(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name=op.f("api_keys_user_id_fkey")),
        sa.PrimaryKeyConstraint("id", name=op.f("api_keys_pkey")),
        sa.UniqueConstraint("key_sha256", name=op.f("api_keys_key_sha256_key")),
    )
    op.create_index(op.f("api_keys_user_id"), "api_keys", ["user_id"], unique=False)
    op.create_table(
        "blob_owners",
        sa.Column("user_id", sa.UUID(), nullable=False),
        sa.Column("sha256", sa.Text(), nullable=False),
        sa.Column(
            "created_at",
            postgresql.TIMESTAMP(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.ForeignKeyConstraint(["sha256"], ["blobs.sha256"], name=op.f("blob_owners_sha256_fkey")),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name=op.f("blob_owners_user_id_fkey")),
        sa.PrimaryKeyConstraint("user_id", "sha256", name=op.f("blob_owners_pkey")),
    )
    op.create_table(
        "operations",
        sa.Column("id", sa.UUID(), nullable=False),
        sa.Column("user_id", sa.UUID(), nullable=False),
        sa.Column("dataset_id", sa.UUID(), nullable=True),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("arguments", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("status", sa.Text(), server_default="pending", nullable=False),
        sa.Column(
            "run_at",
            postgresql.TIMESTAMP(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.Column("cursor", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("total", sa.BigInteger(), nullable=True),
        sa.Column("done", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column(
            "counts", postgresql.JSONB(astext_type=sa.Text()), server_default="{}", nullable=False
        ),
        sa.Column("attempts", sa.SmallInteger(), server_default="0", nullable=False),
        sa.Column("max_attempts", sa.SmallInteger(), server_default="5", nullable=False),
        sa.Column("lease_token", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("lease_owner", sa.UUID(), nullable=True),
        sa.Column("lease_expires_at", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.Column("reason", sa.Text(), server_default="", nullable=False),
        sa.Column("error", sa.Text(), server_default="", nullable=False),
        sa.Column(
            "created_at",
            postgresql.TIMESTAMP(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.Column("started_at", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.Column("completed_at", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.CheckConstraint(
            "(status = 'processing') = (lease_owner IS NOT NULL)",
            name=op.f("operations_lease_matches"),
        ),
        sa.CheckConstraint(
            "(status IN ('completed','failed')) = (completed_at IS NOT NULL)",
            name=op.f("operations_end_matches"),
        ),
        sa.CheckConstraint(
            "status IN ('pending','processing','completed','failed')",
            name=op.f("operations_known_status"),
        ),
        sa.CheckConstraint(
            "(lease_owner IS NULL) = (lease_expires_at IS NULL)",
            name=op.f("operations_lease_has_expiry"),
        ),
        sa.ForeignKeyConstraint(
            ["dataset_id"], ["datasets.id"], name=op.f("operations_dataset_id_fkey")
        ),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name=op.f("operations_user_id_fkey")),
        sa.PrimaryKeyConstraint("id", name=op.f("operations_pkey")),
    )
    op.create_index(
        "operations_live",
        "operations",
        ["run_at", "id"],
        unique=False,
        postgresql_where=sa.text("status IN ('pending','processing')"),
    )
    op.create_index("operations_user", "operations", ["user_id", "id"], unique=False)
    op.create_table(
        "inferences",
        sa.Column("id", sa.UUID(), nullable=False),
        sa.Column("dataset_id", sa.UUID(), nullable=False),
        sa.Column("user_id", sa.UUID(), nullable=False),
        sa.Column("external_id", sa.Text(), nullable=False),
        sa.Column("item_id", sa.UUID(), nullable=False),
        sa.Column("raw", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column(
            "created_at",
            postgresql.TIMESTAMP(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.ForeignKeyConstraint(
            ["dataset_id"], ["datasets.id"], name=op.f("inferences_dataset_id_fkey")
        ),
        sa.ForeignKeyConstraint(
            ["item_id"], ["dataset_items.id"], name=op.f("inferences_item_id_fkey")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("inferences_pkey")),
        sa.UniqueConstraint(
            "dataset_id", "external_id", name=op.f("inferences_dataset_id_external_id_key")
        ),
    )
    op.create_index(op.f("inferences_item_id"), "inferences", ["item_id"], unique=False)
    op.add_column("datasets", sa.Column("notes", sa.Text(), server_default="", nullable=False))
    op.add_column(
        "dataset_items", sa.Column("description", sa.Text(), server_default="", nullable=False)
    )
    op.add_column("annotations", sa.Column("inference_id", sa.UUID(), nullable=True))
    for name in ("annotations_model_has_author", "annotations_has_fingerprint"):
        op.drop_constraint(op.f(name), "annotations", type_="check")
    op.create_check_constraint(
        op.f("annotations_model_has_author"),
        "annotations",
        "(source = 'model') = (post_processor_id IS NOT NULL)",
    )
    op.create_check_constraint(
        op.f("annotations_inference_has_origin"),
        "annotations",
        "(source = 'inference') = (inference_id IS NOT NULL)",
    )
    op.create_check_constraint(
        op.f("annotations_has_fingerprint"),
        "annotations",
        "(source IN ('model','inference')) = (fingerprint IS NOT NULL)",
    )
    op.create_index(
        "annotations_inference_output",
        "annotations",
        ["item_id", "version_id", "fingerprint"],
        unique=True,
        postgresql_where=sa.text("source = 'inference'"),
    )
    op.create_index(
        "dataset_items_content",
        "dataset_items",
        ["content_sha256", "user_id"],
        unique=False,
        postgresql_where=sa.text("content_sha256 IS NOT NULL"),
    )
    op.create_index(
        "job_attempts_ended",
        "job_attempts",
        ["ended_at"],
        unique=False,
        postgresql_using="brin",
        postgresql_with={"pages_per_range": 32, "autosummarize": True},
    )
    op.add_column("job_results", sa.Column("text_sha256", sa.Text(), nullable=True))
    op.add_column(
        "job_results",
        sa.Column("refused", sa.Integer(), server_default="0", nullable=False),
    )
    op.alter_column("idempotency_keys", "item_ids", new_column_name="ids")
    op.add_column(
        "workers",
        sa.Column("draining", sa.Boolean(), server_default=sa.text("false"), nullable=False),
    )


def downgrade() -> None:
    op.drop_column("workers", "draining")
    op.drop_column("datasets", "notes")
    op.drop_column("dataset_items", "description")
    op.drop_index("job_attempts_ended", table_name="job_attempts", postgresql_using="brin")
    op.alter_column("idempotency_keys", "ids", new_column_name="item_ids")
    op.drop_column("job_results", "refused")
    op.drop_column("job_results", "text_sha256")
    op.drop_index(
        "dataset_items_content",
        table_name="dataset_items",
        postgresql_where=sa.text("content_sha256 IS NOT NULL"),
    )
    op.drop_index(
        "annotations_inference_output",
        table_name="annotations",
        postgresql_where=sa.text("source = 'inference'"),
    )
    for name in (
        "annotations_model_has_author",
        "annotations_inference_has_origin",
        "annotations_has_fingerprint",
    ):
        op.drop_constraint(op.f(name), "annotations", type_="check")
    op.drop_column("annotations", "inference_id")
    op.create_check_constraint(
        op.f("annotations_model_has_author"),
        "annotations",
        "(source = 'human') = (post_processor_id IS NULL)",
    )
    op.create_check_constraint(
        op.f("annotations_has_fingerprint"),
        "annotations",
        "(post_processor_id IS NULL) = (fingerprint IS NULL)",
    )
    op.drop_index(op.f("inferences_item_id"), table_name="inferences")
    op.drop_table("inferences")
    op.drop_index("operations_user", table_name="operations")
    op.drop_index(
        "operations_live",
        table_name="operations",
        postgresql_where=sa.text("status IN ('pending','processing')"),
    )
    op.drop_table("operations")
    op.drop_table("blob_owners")
    op.drop_index(op.f("api_keys_user_id"), table_name="api_keys")
    op.drop_table("api_keys")
    op.drop_table("dead_letters")
