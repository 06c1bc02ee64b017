"""How do texts become token ids and back, one token at a time?

`TokenizerCodec` uses the model's own tokenizer. `NumberCodec` is for shapes with random weights
that have none: each token is the number of its id.
Chapter: chapters/46_serving_under_load.md    Lab: labs/46_serving_under_load.ipynb
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from inferlab.errors import UserError

Conversation = Sequence[tuple[str, str]]  # (role, text) of each turn


class Decoding(Protocol):
    """The text of one answer, token by token."""

    def add(self, token_id: int) -> str:
        """What this token adds; nothing while a character is incomplete."""
        ...

    def end(self) -> str:
        """What an answer that ends now still holds back."""
        ...


class Codec(Protocol):
    """Texts to token ids and back."""

    stop_token_ids: tuple[int, ...]  # tokens after which the model has said all

    def encode(self, text: str) -> list[int]:
        """Token ids of a text to continue."""
        ...

    def encode_chat(self, conversation: Conversation) -> list[int]:
        """Token ids of a conversation, up to where the assistant's answer begins."""
        ...

    def decoding(self) -> Decoding:
        """A new answer's text."""
        ...


class TokenizerCodec:
    """A fast tokenizer of transformers, with its chat template."""

    def __init__(self, tokenizer: Any) -> None:
        if not getattr(tokenizer, "is_fast", False):
            raise UserError("serving needs a fast tokenizer (tokenizer.json) beside the weights")
        self._tokenizer, self._rust = tokenizer, tokenizer.backend_tokenizer
        end = tokenizer.eos_token_id
        self.stop_token_ids: tuple[int, ...] = () if end is None else (end,)

    def encode(self, text: str) -> list[int]:
        """Token ids, with what the tokenizer puts before every text."""
        return self._encoded(text, True)

    def encode_chat(self, conversation: Conversation) -> list[int]:
        """Token ids of the chat template; UserError where the template refuses the turns."""
        if not self._tokenizer.chat_template:
            raise UserError("this model has no chat template: use /v1/completions")
        from jinja2 import TemplateError

        turns = [{"role": role, "content": text} for role, text in conversation]
        try:
            text = self._tokenizer.apply_chat_template(
                turns, add_generation_prompt=True, tokenize=False
            )
        except (TemplateError, TypeError, ValueError) as error:
            reason = " ".join(str(error).split())[:80]
            raise UserError(f"the chat template refuses these messages: {reason}") from error
        return self._encoded(text, False)

    def _encoded(self, text: str, add_special_tokens: bool) -> list[int]:
        # `encode` keeps the interpreter's lock for as long as it takes, and a thread with it stops
        # the event loop: 1 MB of text for 0.4 s. A batch gives the lock away.
        return self._rust.encode_batch([text], add_special_tokens=add_special_tokens)[0].ids

    def decoding(self) -> Decoding:
        """Without special tokens; several tokens that make one character come out with the last."""
        return _TokenizerDecoding(self._rust)


class _TokenizerDecoding:
    __slots__ = ("_held", "_rust", "_stream")

    def __init__(self, rust: Any) -> None:
        from tokenizers.decoders import DecodeStream

        self._rust, self._stream = rust, DecodeStream(skip_special_tokens=True)
        self._held: list[int] = []  # tokens that have not shown yet

    def add(self, token_id: int) -> str:
        text = self._stream.step(self._rust, token_id)
        if text is None:
            self._held.append(token_id)
            return ""
        if self._held:
            self._held.clear()
        return text

    def end(self) -> str:
        """An incomplete character shows as U+FFFD, as the tokenizer's own `decode` has it."""
        held, self._held = self._held, []
        return self._rust.decode(held) if held else ""


class NumberCodec:
    """Tokens as numbers with spaces between: for a model without a tokenizer."""

    stop_token_ids: tuple[int, ...] = ()

    def encode(self, text: str) -> list[int]:
        """The numbers in the text; UserError where a word is none, or beyond the vocabulary."""
        words = text.split()
        for word in words:
            if not (word.isascii() and word.isdigit() and len(word) < 10):
                raise UserError(
                    "this model has no tokenizer: send the prompt as token ids, or as numbers "
                    "with spaces between"
                )
        return [int(word) for word in words]

    def encode_chat(self, conversation: Conversation) -> list[int]:
        """The numbers of all turns."""
        return self.encode(" ".join(text for _, text in conversation))

    def decoding(self) -> Decoding:
        """Each token as a space and its number."""
        return _NumberDecoding()


class _NumberDecoding:
    __slots__ = ()

    def add(self, token_id: int) -> str:
        return f" {token_id}"

    def end(self) -> str:
        return ""
