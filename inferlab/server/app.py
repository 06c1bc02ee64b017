"""Which addresses does the server answer, and what does it check before the engine sees a request?

    GET  /health  /v1/models  /metrics
    POST /v1/completions  /v1/chat/completions

Chapter: chapters/46_serving_under_load.md    Lab: labs/46_serving_under_load.ipynb
"""

from __future__ import annotations

import asyncio
import os
import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from inferlab.errors import UserError
from inferlab.server.prometheus import CONTENT_TYPE, ServerMetrics
from inferlab.server.reply import STALLED_READER_S, Answer, AnswerForm
from inferlab.server.schema import ApiError, ChatRequest, CompletionRequest, parse
from inferlab.server.stream import AnswerText
from inferlab.server.text import Codec
from inferlab.server.worker import EngineWorker, TokenStream

MAX_BODY_BYTES = 4 * 2**20
MAX_UNREAD_BYTES = 64 * 2**20  # a larger body is cut off, before it can be told why
TURN_CHARS = 32  # what a chat template may put around a turn
INLINE_CHARS = 4096  # longer texts become tokens in a thread beside: the loop goes on sending
COMPLETION_TOKENS = 16  # what OpenAI's API writes when nobody says how many


@dataclass(frozen=True, slots=True)
class ServedModel:
    """What the server must know about its model. `max_len`: prompt and answer in tokens."""

    name: str
    vocab_size: int
    max_len: int
    codec: Codec


def create_app(
    model: ServedModel, worker: EngineWorker, stalled_reader_s: float = STALLED_READER_S
) -> FastAPI:
    """The application; the worker's thread lives from start-up to shut-down."""
    metrics = ServerMetrics(model.name, lambda: worker.stats)
    worker.observe = metrics
    handler = _Handler(model, worker, metrics, stalled_reader_s)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        worker.start()
        yield
        await worker.close()

    # No pages of its own: they would fetch their scripts from elsewhere.
    app = FastAPI(
        title="inferlab", docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan
    )
    app.add_exception_handler(ApiError, _refusal(metrics))
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(ClientDisconnect, _nobody_there(metrics))
    app.add_exception_handler(Exception, _internal_error)
    # Plain routes: bodies are read and checked here, and an Answer is an ASGI application.
    app.add_route("/v1/completions", handler.completions, methods=["POST"])
    app.add_route("/v1/chat/completions", handler.chat, methods=["POST"])

    @app.api_route("/health", methods=["GET", "HEAD"])
    async def health() -> Response:
        if worker.failure is not None or worker.draining:
            state = "failed" if worker.failure is not None else "draining"
            return JSONResponse({"status": state}, status_code=503)
        return JSONResponse({"status": "ok"})

    @app.get("/v1/models")
    async def models() -> Response:
        return JSONResponse({"object": "list", "data": [handler.card]})

    @app.get("/v1/models/{name:path}")
    async def one_model(name: str) -> Response:
        handler.check_model(name)
        return JSONResponse(handler.card)

    @app.get("/metrics")
    async def prometheus() -> Response:
        return Response(metrics.text(), media_type=CONTENT_TYPE)

    return app


class _Handler:
    """From the bytes of a request to an Answer, or an ApiError."""

    def __init__(
        self,
        model: ServedModel,
        worker: EngineWorker,
        metrics: ServerMetrics,
        stalled_reader_s: float,
    ) -> None:
        self._model, self._worker, self._metrics = model, worker, metrics
        self._stalled_reader_s = stalled_reader_s
        self.card = {
            "id": model.name,
            "object": "model",
            "created": int(time.time()),
            "owned_by": "inferlab",
            "max_model_len": model.max_len,
        }

    async def completions(self, request: Request) -> Answer:
        """POST /v1/completions."""
        wanted = await self._received(request, CompletionRequest)
        prompt = wanted.prompt
        if isinstance(prompt, str):
            prompt = await self._encoded(self._model.codec.encode, prompt, len(prompt))
        usual = min(COMPLETION_TOKENS, self._room_after(prompt))
        return self._answer(wanted, prompt, wanted.max_tokens or usual, False)

    async def chat(self, request: Request) -> Answer:
        """POST /v1/chat/completions."""
        wanted = await self._received(request, ChatRequest)
        turns = [(message.role, message.text) for message in wanted.messages]
        size = sum(len(role) + len(text) + TURN_CHARS for role, text in turns)
        prompt = await self._encoded(self._model.codec.encode_chat, turns, size)
        limit = wanted.max_completion_tokens or wanted.max_tokens
        return self._answer(wanted, prompt, limit or self._room_after(prompt), True)

    def check_model(self, name: str) -> None:
        """ApiError 404 unless `name` is the model served."""
        if name != self._model.name:
            raise ApiError(
                404,
                f"the model {name[:60]!r} is not served here; this server has {self._model.name!r}",
                param="model",
                code="model_not_found",
            )

    async def _received(self, request: Request, kind: type) -> Any:
        self._worker.check_open()  # before any work is put into it
        wanted = parse(await _body(request), kind)
        self.check_model(wanted.model)
        return wanted

    def _room_after(self, prompt: list[int]) -> int:
        """Tokens that an answer may have; 1 where there are none, as the prompt is refused then."""
        return max(1, self._model.max_len - len(prompt))

    async def _encoded(self, encode: Callable, text: Any, num_chars: int) -> list[int]:
        try:
            if num_chars <= INLINE_CHARS:
                return encode(text)
            return await asyncio.get_running_loop().run_in_executor(None, encode, text)
        except UserError as error:
            raise ApiError(400, str(error), param="prompt") from error

    def _answer(self, wanted: Any, prompt: list[int], max_tokens: int, chat: bool) -> Answer:
        model = self._model
        self._check_length(prompt, max_tokens)
        stream = TokenStream(
            f"{'chatcmpl' if chat else 'cmpl'}-{uuid.uuid4().hex}",
            prompt,
            max_tokens,
            _sampling(wanted),
            () if wanted.ignore_eos else model.codec.stop_token_ids,
        )
        form = AnswerForm(
            model=model.name,
            created=int(time.time()),
            chat=chat,
            streamed=bool(wanted.stream),
            usage=wanted.wants_usage,
            token_ids=bool(wanted.return_token_ids),
        )
        text = AnswerText(model.codec.decoding(), wanted.stop_strings)
        return Answer(self._worker, stream, text, form, self._metrics, self._stalled_reader_s)

    def _check_length(self, prompt: list[int], max_tokens: int) -> None:
        limit = self._model.max_len
        if not prompt:
            raise ApiError(400, "the prompt has no tokens", param="prompt")
        if len(prompt) >= limit:
            raise ApiError(
                400,
                f"the prompt has {len(prompt)} tokens; this server takes {limit} together with "
                "the answer: shorten the prompt",
                param="prompt",
                code="context_length_exceeded",
            )
        if len(prompt) + max_tokens > limit:
            raise ApiError(
                400,
                f"max_tokens is too large: {len(prompt)} prompt tokens leave "
                f"{limit - len(prompt)} of the {limit} that this server takes",
                param="max_tokens",
                code="context_length_exceeded",
            )
        if max(prompt) >= self._model.vocab_size:
            raise ApiError(
                400,
                f"the prompt has a token id beyond the vocabulary of {self._model.vocab_size}",
                param="prompt",
            )


async def _body(request: Request) -> bytes:
    """The body, or ApiError 413 once the client has sent it all and listens."""
    body, size = bytearray(), 0
    async for part in request.stream():
        size += len(part)
        if size <= MAX_BODY_BYTES:
            body += part
        elif size > MAX_UNREAD_BYTES:
            break
    if size > MAX_BODY_BYTES:
        raise ApiError(
            413,
            f"the request is larger than {MAX_BODY_BYTES // 2**20} MiB",
            headers={"connection": "close"},
        )
    return bytes(body)


def _sampling(wanted: Any) -> Any:
    """OpenAI's defaults: temperature 1, a seed that nobody knows."""
    from inferlab.decoding.sampling import GREEDY, Sampling

    if wanted.temperature == 0:
        return GREEDY
    seed = wanted.seed if wanted.seed is not None else int.from_bytes(os.urandom(7), "big")
    return Sampling(
        temperature=1.0 if wanted.temperature is None else wanted.temperature,
        top_k=max(0, wanted.top_k or 0),
        top_p=1.0 if wanted.top_p is None else wanted.top_p,
        seed=seed,
    )


def _refusal(metrics: ServerMetrics) -> Callable:
    async def refuse(_: Request, error: ApiError) -> Response:
        metrics.refused(error.status)
        return JSONResponse(error.body(), status_code=error.status, headers=error.headers)

    return refuse


def _nobody_there(metrics: ServerMetrics) -> Callable:
    async def drop(_: Request, __: Exception) -> Response:
        """The client hung up while it sent its request: nothing to report, nobody to tell."""
        metrics.disconnected()
        return Response(status_code=400)

    return drop


async def _http_error(_: Request, error: HTTPException) -> Response:
    known = {404: "there is nothing at this address", 405: "this address takes another method"}
    message = known.get(error.status_code, "the request cannot be answered")
    refusal = ApiError(error.status_code, message)
    return JSONResponse(refusal.body(), status_code=error.status_code, headers=error.headers)


async def _internal_error(_: Request, __: Exception) -> Response:
    """What went wrong is for the server's own log, not for the client."""
    return JSONResponse(ApiError(500, "internal error").body(), status_code=500)
