"""The texts that quality is measured on: frozen, disjoint, exactly tokenized."""

import hashlib
import json

import pytest
import torch
from quality_examples import LetterTokenizer

from inferlab.errors import UserError
from inferlab.paths import data_folder
from inferlab.quality import text as quality_text
from inferlab.quality.text import FROZEN_SHA256, NUM_TOKENS, calibration_ids, load_text

FOLDER = data_folder() / "quality"
TOKENIZER = LetterTokenizer()


def lines(name):
    return [json.loads(line) for line in (FOLDER / f"{name}.jsonl").read_text("utf-8").splitlines()]


@pytest.mark.parametrize("name", FROZEN_SHA256)
def test_a_frozen_file_has_the_hash_that_records_name(name):
    content = (FOLDER / f"{name}.jsonl").read_bytes()
    assert hashlib.sha256(content).hexdigest() == FROZEN_SHA256[name]


def test_the_sampled_text_is_long_enough_and_of_many_kinds():
    found = lines("sampled")
    assert len(found) * 256 >= NUM_TOKENS >= 20_000
    assert all(len(line["token_ids"]) == 256 for line in found)
    assert len({line["kind"] for line in found}) >= 10
    prompts = [line for line in lines("prompts") if line["split"] == "sampled"]
    assert len(prompts) == len(found) >= 60
    for prompt, line in zip(prompts, found, strict=True):
        assert line["text"].startswith(prompt["prompt"])


def test_calibration_shares_no_passage_with_what_is_judged():
    def passages(name, length=16):
        rows = (line["token_ids"] for line in lines(name))
        return {tuple(row[i : i + length]) for row in rows for i in range(len(row) - length + 1)}

    assert not passages("sampled") & passages("calibration")
    assert not {p["prompt"] for p in lines("prompts") if p["split"] == "sampled"} & {
        p["prompt"] for p in lines("prompts") if p["split"] == "calibration"
    }


def test_another_tokenizer_reads_the_text_instead_of_the_stored_ids():
    text = load_text("sampled", TOKENIZER, 300, window=64)
    assert text.windows.shape == (5, 64)  # rounded up to whole windows
    assert text.num_tokens == 320
    assert text.sha256 == FROZEN_SHA256["sampled"]
    assert text.windows.flatten().tolist() == TOKENIZER.encode(lines("sampled")[0]["text"])[:320]


def test_pydoc_is_read_from_the_interpreter():
    text = load_text("pydoc", TOKENIZER, 4096)
    assert text.windows.shape == (16, 256)
    assert text.source.startswith("pydoc_data.topics of Python 3.")
    assert len(text.sha256) == 64
    assert text.sha256 == load_text("pydoc", TOKENIZER, 256).sha256


def test_a_file_of_the_reader(tmp_path):
    path = tmp_path / "mine.txt"
    path.write_text("abcdefgh" * 100, encoding="utf-8")
    text = load_text(str(path), TOKENIZER, 512, window=128)
    assert text.name == "mine.txt" and str(tmp_path) not in text.source
    assert text.windows[1].tolist() == TOKENIZER.encode("abcdefgh" * 16)


def test_bad_texts_end_in_one_line(tmp_path, monkeypatch):
    short, binary = tmp_path / "short.txt", tmp_path / "binary.txt"
    short.write_text("only this")
    binary.write_bytes(b"good \xff\xfe bad")
    for name, message in (
        (str(short), "has 9 tokens, 256 were asked for"),
        (str(binary), "not UTF-8 text"),
        (str(tmp_path / "none.txt"), "no text called"),
        (str(tmp_path), "no text called"),
        ("", "no text called"),
        ("no\0name", "no text called"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            load_text(name, TOKENIZER, 256)
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="num_tokens >= 1"):
        load_text("sampled", TOKENIZER, 0)
    with pytest.raises(UserError, match="were asked for"):
        load_text("sampled", TOKENIZER, 10_000_000)
    monkeypatch.setattr(quality_text, "MAX_FILE_BYTES", 4)
    with pytest.raises(UserError, match="larger than"):
        load_text(str(short), TOKENIZER, 256)


def test_a_changed_frozen_text_is_refused(tmp_path, monkeypatch):
    (tmp_path / "quality").mkdir()
    monkeypatch.setattr(quality_text, "data_folder", lambda: tmp_path)
    with pytest.raises(UserError, match="checkout"):
        load_text("sampled", TOKENIZER, 256)
    (tmp_path / "quality" / "sampled.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match="was changed"):
        load_text("sampled", TOKENIZER, 256)


def test_calibration_is_seeded_and_bounded():
    first = calibration_ids(TOKENIZER, 1000, seed=3, window=100)
    assert first.shape == (10, 100)
    assert torch.equal(first, calibration_ids(TOKENIZER, 1000, seed=3, window=100))
    assert not torch.equal(first, calibration_ids(TOKENIZER, 1000, seed=4, window=100))
    for wanted in (0, 10_000_000):
        with pytest.raises(UserError, match="calibration holds"):
            calibration_ids(TOKENIZER, wanted)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sampled", "calibration"])
def test_stored_ids_are_what_the_tokenizer_of_the_model_makes_of_the_text(name):
    from inferlab.models.load import load_tokenizer

    tokenizer = load_tokenizer("smollm2-135m")
    for line in lines(name):
        assert tokenizer.encode(line["text"], add_special_tokens=False) == line["token_ids"]
