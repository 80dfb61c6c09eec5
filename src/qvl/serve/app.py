"""The application: its routes, and the layers around them.

Main path: create_app -> Front (ids, log) -> KeyGuard -> BodyCheck -> a route here -> `Serving`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

import qvl
from qvl.errors import InvalidParamError, QvlError
from qvl.serve import chat, completions, responses
from qvl.serve.admission import Admission
from qvl.serve.answers import Answers
from qvl.serve.auth import KeyGuard, Keys
from qvl.serve.batches import Batches
from qvl.serve.errors import Json, Refusal, handle
from qvl.serve.front import BodyCheck, Front
from qvl.serve.kept_routes import kept_routes
from qvl.serve.limits import Limits
from qvl.serve.metrics import Metrics
from qvl.serve.queued import queued
from qvl.serve.requested import Asking
from qvl.serve.serving import Serving
from qvl.serve.tasks import task_routes
from qvl.serve.tokens import DetokenizeBody, TokenizeBody, Tokenizes
from qvl.serve.watchdog import Watchdog
from qvl.vlm.chat_model import ChatModel, check_length


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None
    code: str
    hint: str | None
    request_id: str


class ErrorBody(BaseModel):
    error: ErrorDetail


def _documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": ErrorBody, "description": "an error"} for status in statuses}


READERS = 16  # bodies that are taken apart at once: a document in one may take seconds
UNKNOWN_CONTEXT = 2**15  # positions; of a remote model, for the queue alone
EVERYWHERE = _documented(401, 403, 431, 500)
COMPUTED = _documented(400, 404, 408, 413, 415, 429, 503, 504)


def _serving(request: Request) -> Serving:
    return request.app.state.serving


Here = Annotated[Serving, Depends(_serving)]
probes = APIRouter(tags=["state"], responses=EVERYWHERE)
router = APIRouter(tags=["openai"], responses=EVERYWHERE)


@router.post("/v1/chat/completions", responses=COMPUTED)
async def chat_completions(body: chat.ChatBody, http: Request, serving: Here) -> Response:
    return await _answered(body, http, serving)


@router.post("/v1/completions", responses=COMPUTED)
async def text_completions(
    body: completions.CompletionBody, http: Request, serving: Here
) -> Response:
    return await _answered(body, http, serving)


@router.post("/v1/responses", responses=COMPUTED)
async def create_response(body: responses.ResponseBody, http: Request, serving: Here) -> Response:
    return await _answered(body, http, serving)


async def _answered(body: Asking, http: Request, serving: Serving) -> Response:
    asked = serving.asked(http, body)
    requests = await serving.read(
        asked, lambda: [serving.own(request, asked) for request in body.requests(asked.ignored)]
    )
    shape = serving.shape(body, asked)
    if not body.stream:
        return await serving.whole(requests, asked, lambda found: body.whole(found, shape))
    return await serving.stream(requests, asked, lambda pieces: body.events(pieces, shape))


@router.get("/v1/models")
async def models(serving: Here) -> Response:
    names = (*serving.names, *serving.adapters)
    return Json({"object": "list", "data": [_model(name, serving) for name in names]})


@router.get("/v1/models/{name:path}", responses=_documented(404))
async def model(name: str, serving: Here) -> Response:
    serving.check_model(name)
    return Json(_model(name, serving))


def _model(name: str, serving: Serving) -> dict[str, Any]:
    info = serving.model.info
    return {
        "id": name,
        "object": "model",
        "created": serving.created,
        "owned_by": "qvl",
        "root": serving.names[0],
        "parent": serving.names[0] if name in serving.adapters else None,
        "max_model_len": info.max_positions,
        "qvl": {
            "modalities": ["text", "image", "video"],
            "generation": info.generation,
            "parameters": info.parameters,
            "dtype": info.dtype,
            "device": info.device,
            "revision": info.revision,
            "state": _state(serving),
        },
    }


def _state(serving: Serving) -> str:
    closed = serving.admission.closed
    return closed().failure.code if closed else "ready"


@router.post("/tokenize", responses=COMPUTED)
async def tokenize(body: TokenizeBody, http: Request, serving: Here) -> Response:
    asked, tokenizer = serving.asked(http, body), _tokenizer(serving)
    serving.admission.count(asked.key)

    def ids_of() -> list[int]:
        if body.messages:
            return tokenizer.prompt_ids(serving.own(body.request(), asked))
        text = body.prompt or ""
        check_length(len(text), serving.model.info.max_positions)
        return tokenizer.text_ids(text)

    ids = await serving.read(asked, ids_of)
    limit = serving.model.info.max_positions
    return Json({"count": len(ids), "max_model_len": limit, "tokens": ids, "token_strs": None})


@router.post("/detokenize", responses=COMPUTED)
async def detokenize(body: DetokenizeBody, http: Request, serving: Here) -> Response:
    asked, tokenizer = serving.asked(http, body), _tokenizer(serving)
    serving.admission.count(asked.key)
    return Json({"prompt": await serving.read(asked, lambda: tokenizer.text_of(body.tokens))})


def _tokenizer(serving: Serving) -> Tokenizes:
    if not isinstance(serving.model, Tokenizes):
        raise InvalidParamError("the model is a remote one, whose tokenizer is not here")
    return serving.model


@probes.get("/livez")
@probes.get("/health")
async def livez() -> Response:
    return Json({"status": "ok"})


@probes.get("/readyz", responses=_documented(503))
async def readyz(serving: Here) -> Response:
    serving.admission.refuse_if_closed()
    return Json({"status": "ok"})


@probes.get("/version")
async def version() -> Response:
    return Json({"version": qvl.__version__})


@probes.get("/metrics")
async def metrics(serving: Here) -> Response:
    return Response(serving.metrics.page(), media_type="text/plain; version=0.0.4")


@probes.get("/v1/limits")
async def limits(serving: Here) -> Response:
    return Json(serving.limits.table(serving.model.info.max_positions))


def create_app(
    model: ChatModel,
    *,
    limits: Limits | None = None,
    keys: Keys | None = None,
    names: Sequence[str] = (),
    adapters: Sequence[str] = (),
    any_model: bool = False,
    is_strict: bool = False,
    cors_origins: Sequence[str] = (),
    hosts: Sequence[str] = (),
    kept: Path | None = None,
) -> FastAPI:
    """The ASGI application in front of a model, which stays the caller's to close.

    Files and batches are `kept` in that folder (None: there are none).

    `names` are those that clients may call the model by, its own if there are none; `adapters` are
    models beside it by their own names. `hosts` are the only ones that a Host header may name where there are no keys (none: any).
    """
    limits = limits or Limits.of(model.info.device)
    names = tuple(names) or (model.info.name,)
    admission = Admission(limits, model.info.max_positions or UNKNOWN_CONTEXT)
    metrics = Metrics(model, names[0], admission)
    answers = Answers(model, admission, metrics, limits)
    serving = Serving(
        model=model,
        names=names,
        adapters=tuple(adapters),
        any_model=any_model,
        is_strict=is_strict,
        limits=limits,
        admission=admission,
        metrics=metrics,
        answers=answers,
        watchdog=Watchdog(model, admission, answers, step_s=limits.step_s),
        readers=ThreadPoolExecutor(READERS, "qvl-body"),
    )

    batches = Batches(kept, serving)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        watching = asyncio.ensure_future(serving.watchdog.watch())
        await asyncio.to_thread(batches.begin)
        yield
        await asyncio.to_thread(batches.close, wait=not serving.watchdog.is_stalled)
        watching.cancel()
        serving.readers.shutdown(wait=False, cancel_futures=True)
        serving.answers.close(wait=not serving.watchdog.is_stalled)

    layers = [
        Middleware(Front),
        Middleware(KeyGuard, keys=keys or Keys({}), hosts=hosts),
        Middleware(BodyCheck, limits=limits, admission=admission),
    ]
    if cors_origins:
        cors = Middleware(
            CORSMiddleware,
            allow_origins=list(cors_origins),
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["authorization", "content-type", "x-request-id"],
            expose_headers=["x-request-id", "x-qvl-ignored", "retry-after"],
        )
        layers.insert(0, cors)
    app = FastAPI(
        title="qvl",
        version=qvl.__version__,
        docs_url=None,  # its pages load scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,
        lifespan=lifespan,
        middleware=layers,
        telemetry={"tracing": False, "logs": False},  # FastAPI's own would hold contents: `spans`
        exception_handlers=dict.fromkeys(
            (QvlError, Refusal, RequestValidationError, HTTPException), handle
        ),
    )
    app.state.serving = serving
    app.include_router(probes)
    app.include_router(router)
    statuses = {**EVERYWHERE, **COMPUTED, **_documented(422, 502)}
    app.include_router(kept_routes(batches, _documented), responses=EVERYWHERE)
    app.include_router(task_routes(queued(serving), names[0]), responses=statuses)
    _document_statuses(app)
    return app


def _document_statuses(app: FastAPI) -> None:
    """Takes FastAPI's own 422 out of the document: what is wrong with a body is answered with 400."""
    make = app.openapi

    def openapi() -> dict[str, Any]:
        document = make()
        for methods in document["paths"].values():
            for operation in methods.values():
                if "HTTPValidationError" in str(operation["responses"].get("422")):
                    del operation["responses"]["422"]
        return document

    app.openapi = openapi
