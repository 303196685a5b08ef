"""Which methods each path has, over all its routes: the framework tells those of one only."""

from collections.abc import Iterable, Sequence

from fastapi import APIRouter, FastAPI, HTTPException, Request, Response
from fastapi.routing import APIRoute


class Methods:
    """The methods of every path; where a word and an id may stand in one place, the word wins."""

    def __init__(self, rooms: Iterable[tuple[str, APIRouter]]) -> None:
        self._routes = [
            (prefix, route)
            for prefix, router in rooms
            for route in router.routes
            if isinstance(route, APIRoute)
        ]

    def of(self, path: str) -> Sequence[str]:
        """The methods of a path, none where there is no such route."""
        found = self._matching(path)
        if not found:
            return ()
        plainest = min(len(route.param_convertors) for _, route in found)
        return sorted(
            method
            for _, route in found
            if len(route.param_convertors) == plainest
            for method in route.methods or ()
        )

    def guard(self, app: FastAPI) -> None:
        """Refuse at a word what the id in its place would take, such as to delete ``jobs``."""
        for path in sorted({prefix + route.path_format for prefix, route in self._routes}):
            own = set(self.of(path))
            every = {method for _, route in self._matching(path) for method in route.methods or ()}
            if every - own:
                app.router.add_route(path, _refuse, sorted(every - own), include_in_schema=False)

    def _matching(self, path: str) -> list[tuple[str, APIRoute]]:
        return [
            (prefix, route)
            for prefix, route in self._routes
            if path.startswith(prefix) and route.path_regex.match(path.removeprefix(prefix))
        ]


async def _refuse(_request: Request) -> Response:
    raise HTTPException(405)
