"""What may a client ask for, and how is it told that it may not?

The fields of OpenAI's completions and chat completions that this server knows, with vLLM's
`ignore_eos`, `top_k` and `return_token_ids`; others are ignored, as clients send many. A field
whose neglect would make the answer wrong (`n`, `echo`, `logprobs`, `tools`) is refused unless it
asks for what is done anyway.
Chapter: chapters/46_serving_under_load.md    Lab: labs/46_serving_under_load.ipynb
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    FailFast,
    Field,
    PlainValidator,
    ValidationError,
)
from pydantic_core import PydanticCustomError

_Never = Literal[False] | None
SHOWN = 120  # characters of a message that may come from the client
MAX_ROLE_CHARS = 64


def _only(*neutral: Any) -> Any:
    """The type of a field that is not served: None and `neutral` ask for what is done anyway."""

    asked_for_nothing = [(type(one), one) for one in neutral]  # False is not 0 here

    def check(value: Any) -> None:
        if value is not None and (type(value), value) not in asked_for_nothing:
            raise PydanticCustomError("not_served", "this server does not do that: leave it out")

    return Annotated[Any, PlainValidator(check)]


_Empty, _Zero, _One = _only([], {}, "", False), _only(0, 0.0), _only(1, 1.0)
_Off = _only(False)
_NoChoice, _PlainText = _only("none", "auto"), _only({"type": "text"}, {})


class ApiError(Exception):
    """A refusal with its HTTP status, in OpenAI's shape."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.param, self.code, self.headers = status, param, code, headers

    def body(self) -> dict[str, Any]:
        """The JSON document of the answer, or of an event in a stream."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        if self.status == 429:
            kind = "rate_limit_error"
        error = {"message": str(self), "type": kind, "param": self.param, "code": self.code}
        return {"error": error}


class StreamOptions(BaseModel):
    """What a stream carries besides its tokens."""

    model_config = ConfigDict(strict=True)

    include_usage: bool | None = None


class _Request(BaseModel):
    model_config = ConfigDict(strict=True, allow_inf_nan=False)

    model: str
    max_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=100)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1)  # -1 and 0: all tokens
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: str | Annotated[list[str], Field(max_length=16)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    ignore_eos: bool | None = None
    return_token_ids: bool | None = None
    n: Literal[1] | None = None
    echo: _Never = None
    best_of: Literal[1] | None = None
    # Not served: refused where they ask for something.
    suffix: _Empty = None
    logit_bias: _Empty = None
    frequency_penalty: _Zero = None
    presence_penalty: _Zero = None
    repetition_penalty: _One = None
    min_p: _Zero = None
    min_tokens: _Zero = None
    stop_token_ids: _Empty = None
    bad_words: _Empty = None
    allowed_token_ids: _Empty = None
    response_format: _PlainText = None
    structured_outputs: _Empty = None
    guided_json: _Empty = None
    guided_regex: _Empty = None
    guided_choice: _Empty = None
    guided_grammar: _Empty = None
    tools: _Empty = None
    tool_choice: _NoChoice = None
    functions: _Empty = None
    function_call: _NoChoice = None

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """The texts at which the answer ends, without empty ones."""
        stops = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return tuple(text for text in stops if text)

    @property
    def wants_usage(self) -> bool:
        """Whether the last chunk of a stream says how many tokens there were."""
        return bool(self.stream_options and self.stream_options.include_usage)


def _one_prompt(value: Any) -> str | list[int]:
    """A text or its token ids, bare or as the only element of a list."""
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], str | list):
        value = value[0]
    if isinstance(value, str) and value:
        return value
    if isinstance(value, list) and value and all(type(t) is int and t >= 0 for t in value):
        return value
    raise PydanticCustomError(
        "one_prompt", "one text or one list of token ids, not empty; one prompt a request"
    )


class CompletionRequest(_Request):
    """POST /v1/completions: a text, or token ids, to continue."""

    prompt: Annotated[str | list[int], PlainValidator(_one_prompt)]
    logprobs: _Off = None  # 0 asks for that of the token itself


class ContentPart(BaseModel):
    """A piece of a message; only text is understood."""

    type: Literal["text"]
    text: str


class Message(BaseModel):
    """One turn of a conversation."""

    role: Annotated[str, Field(max_length=MAX_ROLE_CHARS)]
    content: str | Annotated[list[ContentPart], Field(max_length=256)] | None = None

    @property
    def text(self) -> str:
        """The content; several parts on lines of their own, as in vLLM."""
        if isinstance(self.content, list):
            return "\n".join(part.text for part in self.content)
        return self.content or ""


class ChatRequest(_Request):
    """POST /v1/chat/completions: a conversation to answer."""

    messages: Annotated[list[Message], Field(min_length=1), FailFast()]
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: _Off = None


Parsed = TypeVar("Parsed", CompletionRequest, ChatRequest)


def parse(body: bytes, kind: type[Parsed]) -> Parsed:
    """The request in `body` (JSON, UTF-8); ApiError 400 with what is wrong in one line."""
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        place = ".".join(str(part) for part in first["loc"][:1])
        message = first["msg"]
        if first["type"] == "json_invalid":
            message = f"the body is not JSON in UTF-8: {message.removeprefix('Invalid JSON: ')}"
        elif place:
            message = f"{place}: {message}"
        raise ApiError(400, message[:SHOWN], param=place or None) from None
