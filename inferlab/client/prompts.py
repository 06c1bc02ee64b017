"""Which text has exactly so many tokens, for a server that takes text only?

Tokens that are a space and a lower-case word stay what they are when they stand side by side, so a
text of n of them has n tokens. It is checked for every prompt, not believed.
Chapter: chapters/46_serving_under_load.md    Lab: labs/46_serving_under_load.ipynb
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from inferlab.errors import UserError
from inferlab.paths import shown_path
from inferlab.workload import Workload

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_WORD = re.compile(r"[Ġ▁][a-z]{2,}")  # how byte-level BPE and SentencePiece write a leading space
_FEWEST_WORDS = 100


def open_tokenizer(folder: str | Path) -> Tokenizer:
    """The tokenizer.json of a model's folder (or that file itself)."""
    from tokenizers import Tokenizer

    path = Path(folder)
    path = path / "tokenizer.json" if path.is_dir() else path
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception
        raise UserError(
            f"cannot read a tokenizer from {shown_path(path)}: {str(error)[:100]}"
        ) from None


def word_tokens(tokenizer: Tokenizer) -> list[int]:
    """Ids of the tokens that are a space and a lower-case word, in the order of the vocabulary."""
    vocabulary = tokenizer.get_vocab(with_added_tokens=False)
    found = sorted(number for token, number in vocabulary.items() if _WORD.fullmatch(token))
    if len(found) < _FEWEST_WORDS:
        raise UserError("this tokenizer has too few whole words to make prompts of: use token ids")
    return found


def in_words(workload: Workload, words: list[int]) -> Workload:
    """The workload with token i replaced by word i: draw it over `len(words)` tokens first."""
    requests = tuple(
        replace(spec, prompt_token_ids=tuple(words[token] for token in spec.prompt_token_ids))
        for spec in workload.requests
    )
    return Workload(requests, workload.seed)


def texts(workload: Workload, tokenizer: Tokenizer) -> list[str]:
    """One text a request that has exactly its prompt's tokens; UserError where one has not."""
    found = []
    for spec in workload.requests:
        text = tokenizer.decode(list(spec.prompt_token_ids), skip_special_tokens=False)
        if len(tokenizer.encode(text, add_special_tokens=False).ids) != spec.prompt_len:
            raise UserError(
                f"the prompt of {spec.id} has another number of tokens as text: draw it from "
                "`word_tokens` of this tokenizer"
            )
        found.append(text)
    return found
