"""On which text are two models compared, and how does a reader know that it is the same text?

`sampled` is frozen in data/quality: continuations of our own prompts by the embedded model itself.
It is plausible to the model that wrote it, so its perplexity is low; a KL divergence on it is as
good as on any text. `pydoc` is what people wrote: the documentation topics of the running Python,
read from the interpreter, so it differs between Python versions. A path names any UTF-8 file.
Calibration has windows of its own, from other prompts: nothing is fitted on what judges it.
"""

from __future__ import annotations

import hashlib
import json
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from inferlab.errors import UserError
from inferlab.paths import data_folder, shown_path

WINDOW = 256  # tokens that are read together: the positions after the first see up to 255 others
NUM_TOKENS = 20_480  # what a record's quality is measured on: 80 windows
MAX_FILE_BYTES = 2**26
CHARACTERS_PER_TOKEN = 16  # far more than text has, so that one attempt usually is enough

# A changed file is refused: records name these hashes.
FROZEN_SHA256 = {
    "sampled": "a4c3b6bf1985fa4a6c6698d2fb8347b9de1ac7d5af3e5047bf74238506471239",
    "calibration": "0dfd5034038bc317bd8cb03e8de18badbc879af83130c0c9e564e627293c458b",
    "questions": "1503b2e5ee23061ba76eb08fe747507e7add031d0c269d12c9a57a54a123ca0f",
}


@dataclass(frozen=True, slots=True, eq=False)
class QualityText:
    """Token ids to be judged on: [n, window], each window read by itself.

    `sha256` is that of the whole source (file or topics), whatever part of it the windows are.
    """

    name: str
    source: str
    sha256: str
    windows: torch.Tensor  # [n, window] int64, on the CPU

    @property
    def num_tokens(self) -> int:
        """Positions at which two models are compared."""
        return self.windows.numel()


def load_text(
    name: str, tokenizer: Any, num_tokens: int = NUM_TOKENS, window: int = WINDOW
) -> QualityText:
    """The first `num_tokens` tokens (rounded up to whole windows) of a text.

    `name`: sampled, pydoc, or the path of a UTF-8 file. `tokenizer` is that of the model. Raises
    UserError for a text that is too short, missing, not UTF-8, or frozen and changed.
    """
    if num_tokens < 1 or window < 2:
        raise UserError(
            f"a text needs num_tokens >= 1 and a window >= 2, not {num_tokens} and {window}"
        )
    wanted = -(-num_tokens // window) * window
    if name in ("sampled", "pydoc"):
        label, (source, sha256, token_ids) = name, _NAMED[name](tokenizer, wanted)
    else:
        source, sha256, text = _read_file(Path(name))
        label, token_ids = Path(name).name, _first_tokens(text, tokenizer, wanted)
    if len(token_ids) < wanted:
        raise UserError(
            f"{label} has {len(token_ids)} tokens, {wanted} were asked for: "
            "take a longer text or a smaller num_tokens"
        )
    windows = torch.tensor(token_ids[:wanted], dtype=torch.int64).view(-1, window)
    return QualityText(label, source, sha256, windows)


def calibration_ids(
    tokenizer: Any, num_tokens: int, seed: int = 0, window: int = WINDOW
) -> torch.Tensor:
    """[n, window] token ids to calibrate or fine-tune on, `num_tokens` rounded up to whole windows.

    From data/quality/calibration.jsonl: the same author as `sampled`, other prompts, other draws.
    `seed` picks which windows and in which order.
    """
    windows = -(-num_tokens // window)
    token_ids = _frozen("calibration", tokenizer)[2]
    held = len(token_ids) // window
    if not 1 <= windows <= held:
        raise UserError(
            f"calibration holds {held * window} tokens in windows of {window}; "
            f"ask for 1 to that many, not {num_tokens}"
        )
    rows = torch.tensor(token_ids[: held * window], dtype=torch.int64).view(held, window)
    return rows[torch.randperm(held, generator=torch.Generator().manual_seed(seed))[:windows]]


def read_frozen(name: str) -> tuple[bytes, str]:
    """(content, sha256) of a file of data/quality; a UserError when it is not the frozen one."""
    path = data_folder() / "quality" / f"{name}.jsonl"
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(
            f"cannot read {shown_path(path)} ({error.strerror}): it belongs to the book's checkout"
        ) from error
    sha256 = hashlib.sha256(content).hexdigest()
    if sha256 != FROZEN_SHA256[name]:
        raise UserError(f"{shown_path(path)} was changed: restore it with git checkout")
    return content, sha256


def _frozen(name: str, tokenizer: Any) -> tuple[str, str, list[int]]:
    """(source, sha256, all token ids) of a frozen file; ids are stored for the model's own
    tokenizer, any other one reads the text.
    """
    content, sha256 = read_frozen(name)
    lines = [json.loads(line) for line in content.decode().splitlines()]
    first = tokenizer.decode(lines[0]["token_ids"], clean_up_tokenization_spaces=False)
    if first == lines[0]["text"]:
        rows = (line["token_ids"] for line in lines)
    else:
        rows = (tokenizer.encode(line["text"], add_special_tokens=False) for line in lines)
    source = "continuations of our own prompts, drawn from SmolLM2-135M-Instruct"
    return source, sha256, [token for row in rows for token in row]


def _pydoc(tokenizer: Any, wanted: int) -> tuple[str, str, list[int]]:
    """(source, sha256, token ids) of Python's documentation topics, in alphabetical order."""
    from pydoc_data.topics import topics

    text = "\n\n".join(topics[key].strip() for key in sorted(topics))
    source = f"pydoc_data.topics of Python {platform.python_version()}"
    sha256 = hashlib.sha256(text.encode()).hexdigest()
    return source, sha256, _first_tokens(text, tokenizer, wanted)


_NAMED = {"sampled": lambda tokenizer, _wanted: _frozen("sampled", tokenizer), "pydoc": _pydoc}


def _read_file(path: Path) -> tuple[str, str, str]:
    """(source, sha256, text) of a file of the reader's own; its folder is not kept."""
    shown = str(path)[-80:]
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise UserError(f"{shown} is larger than {MAX_FILE_BYTES} bytes: cut a part out of it")
        content = path.read_bytes()
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{shown} is not UTF-8 text (byte {error.start}): convert it first"
        ) from error
    except (OSError, ValueError) as error:
        raise UserError(
            f"no text called {shown!r}: use sampled, pydoc or the path of a UTF-8 text file"
        ) from error
    return f"the file {path.name}", hashlib.sha256(content).hexdigest(), text


def _first_tokens(text: str, tokenizer: Any, wanted: int) -> list[int]:
    """At least `wanted` token ids of the text's beginning, or all when it has fewer."""
    length = CHARACTERS_PER_TOKEN * wanted
    while True:
        token_ids = tokenizer.encode(text[:length], add_special_tokens=False, verbose=False)
        if len(token_ids) > wanted or length >= len(text):
            return token_ids
        length *= 4
