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
    _suspects()


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


def _suspects() -> None:
    op.add_column("post_processor_jobs", sa.Column("suspect_group", sa.Uuid()))
    op.create_table(
        "model_entries",
        sa.Column("batch_id", sa.Uuid(), nullable=False),
        sa.Column("entered_at", _TIME, server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("batch_id"),
        prefixes=["UNLOGGED"],
    )
