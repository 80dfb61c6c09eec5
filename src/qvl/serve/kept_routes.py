"""/v1/files and /v1/batches: OpenAI's objects of what `files` and `batches` keep, each key's own alone."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response
from pydantic import AfterValidator, Field
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import FileResponse

from qvl.serve.answers import ClientLeftError
from qvl.serve.batches import Batch, Batches
from qvl.serve.content import Nested
from qvl.serve.errors import Json, Refusal, shown
from qvl.serve.files import Kept, copy_of, page_of
from qvl.serve.limits import (
    BATCH_HOURS,
    FILE_BYTES,
    METADATA,
    METADATA_KEY,
    METADATA_VALUE,
)
from qvl.types import SAMPLING_RANGES

FILES_LISTED, BATCHES_LISTED = 10_000, 100
FORM = {
    "type": "object",
    "required": ["file", "purpose"],
    "properties": {
        "file": {"type": "string", "format": "binary"},
        "purpose": {"type": "string", "enum": ["batch"]},
    },
}


def _hours(value: str) -> str:
    if not re.fullmatch("[1-9][0-9]{0,3}h", value) or int(value[:-1]) > BATCH_HOURS:
        raise ValueError(f"it should be hours, from 1h to {BATCH_HOURS}h, such as 24h")
    return value


class BatchBody(Nested):
    """`seed` is that of requests which have none of their own; drawn if there is none."""

    input_file_id: str
    endpoint: Literal["/v1/chat/completions", "/v1/completions", "/v1/responses"]
    completion_window: Annotated[str, AfterValidator(_hours)]
    metadata: (
        Annotated[
            dict[
                Annotated[str, Field(max_length=METADATA_KEY)],
                Annotated[str, Field(max_length=METADATA_VALUE)],
            ],
            Field(max_length=METADATA),
        ]
        | None
    ) = None
    seed: Annotated[int, Field(ge=0, le=int(SAMPLING_RANGES["seed"][1]))] | None = None


def kept_routes(batches: Batches, documented: Any) -> APIRouter:
    """`documented` makes the errors of a route for the API document, of its statuses."""
    router = APIRouter(tags=["batches"])
    missing = documented(400, 404, 503)
    sent = documented(400, 404, 408, 413, 415, 429, 503)

    def counted(http: Request) -> str:
        """The key, with one more request of it."""
        batches.serving.admission.refuse_if_closed()
        batches.serving.admission.count(http.state.key)
        return http.state.key

    @router.post(
        "/v1/files",
        responses=sent,
        openapi_extra={"requestBody": {"content": {"multipart/form-data": {"schema": FORM}}}},
    )
    async def upload(http: Request) -> Response:
        key = counted(http)
        await run_in_threadpool(batches.open)
        try:
            async with http.form(max_files=1, max_fields=16) as form:
                file, purpose = form.get("file"), form.get("purpose")
                if not isinstance(file, UploadFile) or not isinstance(purpose, str):
                    message = "the form has no file, or no purpose"
                    raise Refusal(400, "invalid_request", message, param="file")
                if purpose != "batch":
                    message = f"the purpose is {shown(purpose)}, and only 'batch' is served here"
                    raise Refusal(400, "invalid_request", message, param="purpose")
                if (file.size or 0) > FILE_BYTES:
                    message = f"the file is over {FILE_BYTES} bytes"
                    raise Refusal(413, "request_too_large", message, param="file")
                kept = await run_in_threadpool(
                    batches.files.add, key, file.filename or "", purpose, copy_of(file.file)
                )
        except ClientDisconnect as err:
            raise ClientLeftError from err
        except HTTPException as err:  # of the form's parser
            message = "the body cannot be read as multipart/form-data"
            raise Refusal(400, "invalid_request", message) from err
        return Json(kept.told())

    @router.get("/v1/files", responses=missing)
    def files(
        http: Request,
        purpose: str | None = None,
        after: str | None = None,
        limit: Annotated[int, Query(ge=1, le=FILES_LISTED)] = FILES_LISTED,
        order: Literal["asc", "desc"] = "desc",
    ) -> Response:
        found = [one for one in batches.files.of(http.state.key) if purpose in (None, one.purpose)]
        page = page_of(found if order == "asc" else found[::-1], _file_id, after, limit)
        return Json({**page, "data": [one.told() for one in page["data"]]})

    @router.get("/v1/files/{file_id}", responses=missing)
    def file(file_id: str, http: Request) -> Response:
        return Json(batches.files.find(http.state.key, file_id).told())

    @router.delete("/v1/files/{file_id}", responses=missing)
    def delete_file(file_id: str, http: Request) -> Response:
        batches.files.delete(http.state.key, file_id)
        return Json({"id": file_id, "object": "file", "deleted": True})

    @router.get("/v1/files/{file_id}/content", responses=missing)
    def content(file_id: str, http: Request) -> Response:
        kept = batches.files.find(http.state.key, file_id)
        return FileResponse(batches.files.path(kept), media_type="application/octet-stream")

    @router.post("/v1/batches", responses=sent)
    def create_batch(body: BatchBody, http: Request) -> Response:
        told = batches.create(
            counted(http),
            input_file_id=body.input_file_id,
            endpoint=body.endpoint,
            hours=int(body.completion_window[:-1]),
            metadata=body.metadata,
            seed=body.seed,
        )
        return Json(told)

    @router.get("/v1/batches", responses=missing)
    def list_batches(
        http: Request,
        after: str | None = None,
        limit: Annotated[int, Query(ge=1, le=BATCHES_LISTED)] = 20,
    ) -> Response:
        page = page_of(batches.of(http.state.key), _batch_id, after, limit)
        return Json({**page, "data": [batches.told(one) for one in page["data"]]})

    @router.get("/v1/batches/{batch_id}", responses=missing)
    def batch(batch_id: str, http: Request) -> Response:
        return Json(batches.told(batches.find(http.state.key, batch_id)))

    @router.post("/v1/batches/{batch_id}/cancel", responses=sent | documented(409))
    def cancel_batch(batch_id: str, http: Request) -> Response:
        return Json(batches.cancel(http.state.key, batch_id))

    return router


def _file_id(kept: Kept) -> str:
    return kept.id


def _batch_id(batch: Batch) -> str:
    return batch.id
