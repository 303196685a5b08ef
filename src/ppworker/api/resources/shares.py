"""Sharing a dataset with other people, by its owner alone."""

from typing import Annotated, Literal

from fastapi import APIRouter
from pydantic import Field

from ppworker.api.auth import KeyedRoute, Room
from ppworker.api.errors import responses
from ppworker.api.paths import OwnDatasetPath, identity
from ppworker.api.wire import Answer, Asked, Base, Text, Time
from ppworker.errors import Invalid
from ppworker.pipeline.setup import sharing
from ppworker.store import shares
from ppworker.store.datasets import as_id

router = APIRouter(
    route_class=KeyedRoute, tags=["datasets"], responses=responses(401, 403, 404, 503)
)


class NewShare(Asked):
    """With whom a dataset is to be shared."""

    email: Annotated[str, Field(max_length=254, examples=["anna@example.org"])]
    """That of their account here."""
    entity_type: Literal["datasets", ""] | None = None
    """datasets, where it is given: what else there is cannot be shared."""
    entity_id: str | None = None
    """The dataset of the path, where it is given."""
    without_invite: bool | None = None
    """Given back as it came: no mail is sent either way."""
    role_id: Annotated[
        Literal["reader", "viewer", "writer", "editor", ""] | None, Field(examples=["reader"])
    ] = None
    """reader (viewer is the same) or writer (editor is the same); default reader."""


class ShareAnswer(Base):
    """A dataset that is shared, in the contract's words."""

    email: str
    entity_type: str = "datasets"
    entity_id: Text
    without_invite: bool = True
    role_id: str
    user_id: Text


class SharedWith(Answer):
    """Somebody with whom a dataset is shared."""

    user_id: Text
    username: str
    email: str
    role: Literal["reader", "writer"]
    created_at: Time
    updated_at: Time


@router.post("/datasets/{dataset_id}/share", responses=responses(400, 413, 422))
def share_dataset(deps: Room, dataset: OwnDatasetPath, body: NewShare) -> ShareAnswer:
    """Share a dataset with somebody who has an account here, or give them another role in it."""
    if body.entity_id and as_id(body.entity_id) != dataset.id:
        raise Invalid("must be the dataset of the path", field="entity_id")
    made = sharing.share(deps, dataset, body.email, body.role_id or "")
    return ShareAnswer.of(
        created_at=made.created_at,
        updated_at=made.updated_at,
        email=body.email,
        entity_id=dataset.id,
        without_invite=body.without_invite is not False,
        role_id=made.role,
        user_id=made.user_id,
    )


@router.get("/datasets/{dataset_id}/shares")
def list_shares(deps: Room, dataset: OwnDatasetPath) -> list[SharedWith]:
    """With whom a dataset is shared, in the order in which that began."""
    with deps.db.look() as tx:
        found = shares.list_shares(tx, dataset.id)
    return [SharedWith.model_validate(each) for each in found]


@router.delete("/datasets/{dataset_id}/shares/{user_id}", status_code=204)
def delete_share(deps: Room, dataset: OwnDatasetPath, user_id: str) -> None:
    """Share a dataset with somebody no more."""
    sharing.unshare(deps, dataset, identity(user_id, "user"))
