"""/v1/tasks: each task as a route of its own, and the list of them with what they take."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Body, Request
from fastapi.responses import JSONResponse

from qvl.tasks import TASKS
from qvl.tasks.body import body_schema, read_body
from qvl.tasks.task import Result, Seen, Task, as_row

Run = Callable[[Request, Task[Any], Sequence[Seen]], Awaitable[Result]]


def task_routes(run: Run, model_name: str) -> APIRouter:
    """Routes whose tasks are computed by `run`, which may raise QvlError as they may.

    Results name the model as `model_name`: the name that it is served by, never a path.
    """
    router = APIRouter(tags=["tasks"])

    @router.get("/v1/tasks")
    async def list_tasks() -> JSONResponse:
        return JSONResponse({"object": "list", "data": [_told(task) for task in TASKS.values()]})

    for task in TASKS.values():
        router.add_api_route(
            f"/v1/tasks/{task.name}",
            _endpoint(task, run, model_name),
            methods=["POST"],
            name=f"task_{task.name}",
            description=task.__doc__,
            openapi_extra={
                "requestBody": {
                    "content": {"application/json": {"schema": body_schema(task, paths=False)}}
                }
            },
        )
    return router


def _told(task: type[Task[Any]]) -> dict[str, Any]:
    return {
        "id": task.name,
        "object": "task",
        "description": task.__doc__,
        "schema": body_schema(task, paths=False),
    }


def _endpoint(
    task: type[Task[Any]], run: Run, model_name: str
) -> Callable[..., Awaitable[JSONResponse]]:
    async def answer(http: Request, body: Annotated[dict[str, Any], Body()]) -> JSONResponse:
        asked, seen = await asyncio.to_thread(read_body, task, body, paths=False)
        asked.check_seen(seen)
        result = await run(http, asked, seen)
        row = as_row(", ".join(one.name for one in seen), result)
        row["meta"]["model"] = model_name
        return JSONResponse(row)

    return answer
