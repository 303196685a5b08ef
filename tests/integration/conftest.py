"""Fixtures of tests that need servers."""

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from api_server import Api
    from factories import World
    from ppworker.pipeline.deps import Deps


@pytest.fixture
def api(deps: "Deps", world: "World") -> "Iterator[Api]":
    """The HTTP API of this test's world, on a real server."""
    from api_server import served_api

    with served_api(deps, world) as served:
        yield served
