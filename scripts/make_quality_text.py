"""Write the frozen texts of data/quality: what does the embedded model itself go on to say?

    python scripts/make_quality_text.py [FOLDER]

Each prompt of data/quality/prompts.jsonl (our own) is continued by SmolLM2-135M-Instruct in
bfloat16 to one window of WINDOW tokens: temperature 1, top-k 1024, top-p 0.95, a seed for each
batch, markers such as <|im_end|> never drawn. The window is then tokenized again from its text, so
that text and token ids say the same. Another processor rounds differently and draws another text:
the shipped files are the reference, and this script says how they were made (4 minutes, 2 cores).
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import torch

from inferlab.decoding.generate import generate
from inferlab.decoding.sampling import Sampling
from inferlab.models.load import load_decoder, load_tokenizer
from inferlab.paths import data_folder

MODEL = "smollm2-135m"
SPLITS = ("sampled", "calibration")  # to judge with, and to fit with
WINDOW = 256  # tokens a line
SPARE = 24  # drawn beyond the window: tokenizing the text again may merge some
BATCH_SIZE = 48
TOP_K = 1024
TOP_P = 0.95
SEED = 2026
# A line to ship holds no link, no address, and nothing that a small model says about people.
UNWANTED = re.compile(
    r"https?:|www\.|\w@\w|\b(?:sex|porn|rape|phall|nazi|jews?\b|muslim|hindu|suicid)", re.IGNORECASE
)


def read_prompts(split: str) -> list[dict[str, str]]:
    """Lines of one split: {"split", "kind", "prompt"}."""
    path = data_folder() / "quality" / "prompts.jsonl"
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if line["split"] == split]


def window_of(token_ids: list[int], tokenizer) -> tuple[str, list[int]] | None:
    """Text and its own token ids, exactly WINDOW of them; None where the line cannot be shipped."""
    text = tokenizer.decode(token_ids, clean_up_tokenization_spaces=False)
    token_ids = tokenizer.encode(text, add_special_tokens=False)[:WINDOW]
    text = tokenizer.decode(token_ids, clean_up_tokenization_spaces=False)
    agrees = tokenizer.encode(text, add_special_tokens=False) == token_ids
    agrees = agrees and len(token_ids) == WINDOW
    return (text, token_ids) if agrees and not UNWANTED.search(text) else None


def continue_prompts(decoder, tokenizer, lines: list[dict[str, str]], seed: int) -> list[dict]:
    """One window a prompt; a prompt whose window cannot be shipped is drawn again."""
    prompts = [tokenizer.encode(line["prompt"], add_special_tokens=False) for line in lines]
    lengths = [WINDOW + SPARE - len(prompt) for prompt in prompts]
    drawn = generate(decoder, prompts, lengths, sampling=Sampling(temperature=1.0, seed=seed))
    windows = []
    for line, prompt, output in zip(lines, prompts, drawn, strict=True):
        window = window_of(prompt + output, tokenizer)
        if window is None:
            windows += continue_prompts(decoder, tokenizer, [line], seed + 1000)
            continue
        text, token_ids = window
        windows.append({"kind": line["kind"], "text": text, "token_ids": token_ids})
    return windows


def trim(logits: torch.Tensor, markers: list[int]) -> torch.Tensor:
    """[B, V] logits with -inf outside the top-k, top-p set; no marker is in it.

    `Sampling(top_p=...)` sorts the whole vocabulary, which takes twenty times as long as the model.
    """
    logits = logits.float()
    logits[:, markers] = float("-inf")
    values, token_ids = logits.topk(TOP_K, dim=-1)
    shares = values.softmax(dim=-1)
    values = values.masked_fill(shares.cumsum(dim=-1) - shares >= TOP_P, float("-inf"))
    return torch.full_like(logits, float("-inf")).scatter(-1, token_ids, values)


def main(folder: Path) -> None:
    """Write sampled.jsonl and calibration.jsonl into `folder`."""
    decoder, tokenizer = load_decoder(MODEL, "bfloat16"), load_tokenizer(MODEL)
    markers = sorted(tokenizer.added_tokens_decoder)
    decoder.register_forward_hook(lambda module, inputs, logits: trim(logits, markers))
    seed = SEED
    for split in SPLITS:
        lines = read_prompts(split)
        path = folder / f"{split}.jsonl"
        with path.open("w", encoding="utf-8", newline="\n") as file:
            for start in range(0, len(lines), BATCH_SIZE):
                batch = lines[start : start + BATCH_SIZE]
                for window in continue_prompts(decoder, tokenizer, batch, seed):
                    file.write(json.dumps(window, ensure_ascii=False, separators=(",", ":")) + "\n")
                seed += 1
                print(f"{path.name}: {min(start + BATCH_SIZE, len(lines))} of {len(lines)} windows")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else data_folder() / "quality")
