"""/v1/tasks: each task as a route of its own, and the list of them with what they take."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Body, Request

from qvl.errors import InvalidParamError
from qvl.serve.errors import Json
from qvl.tasks import TASKS
from qvl.tasks.body import body_schema
from qvl.tasks.task import Task

MODEL = "model"  # beside a task's options
Run = Callable[[Request, type[Task[Any]], Mapping[str, Any]], Awaitable[dict[str, Any]]]


def task_routes(run: Run, model_name: str) -> APIRouter:
    """Routes of tasks; `run` gives the row of what one finds for a body, and may raise QvlError.

    Results name the model as the body does, else as `model_name`: a name that it is served by, never
    a path.
    """
    router = APIRouter(tags=["tasks"])

    @router.get("/v1/tasks")
    async def list_tasks() -> Json:
        return Json({"object": "list", "data": [_told(task) for task in TASKS.values()]})

    for task in TASKS.values():
        router.add_api_route(
            f"/v1/tasks/{task.name}",
            _endpoint(task, run, model_name),
            methods=["POST"],
            name=f"task_{task.name}",
            description=task.__doc__,
            openapi_extra={
                "requestBody": {"content": {"application/json": {"schema": _schema(task)}}}
            },
        )
    return router


def _told(task: type[Task[Any]]) -> dict[str, Any]:
    return {
        "id": task.name,
        "object": "task",
        "description": task.__doc__,
        "schema": _schema(task),
    }


def _schema(task: type[Task[Any]]) -> dict[str, Any]:
    schema = body_schema(task, paths=False)
    named = {"type": "string", "description": "One of the models that /v1/models lists."}
    return {**schema, "properties": {**schema["properties"], MODEL: named}}


def _endpoint(task: type[Task[Any]], run: Run, model_name: str) -> Callable[..., Awaitable[Json]]:
    async def answer(http: Request, body: Annotated[dict[str, Any], Body()]) -> Json:
        name = body.get(MODEL, model_name)
        if not isinstance(name, str):
            raise InvalidParamError("model is not a string")
        row = await run(http, task, body)
        row["meta"]["model"] = name
        return Json(row)

    return answer
