"""Questions scored by log-likelihood: against the plain sum, ties, flips, and the shipped set."""

import math
from collections import Counter

import pytest
import torch
from quality_examples import LetterTokenizer, sure_decoder

from inferlab.errors import MeasurementError, UserError
from inferlab.quality import task as task_module
from inferlab.quality.compare import all_logits
from inferlab.quality.task import Question, TaskResult, load_questions, paired_flips, score

TOKENIZER = LetterTokenizer(61)
QUESTIONS = (
    Question("a", "x", "one two", (" three", " four", " x", " zebra"), 0),
    Question("b", "x", "z", ("1", "2", "3", "4"), 2),
    Question("c", "y", "a much longer prompt that ends", (" here", " hers", " him", " it"), 3),
)


def result(*correct):
    return TaskResult(tuple(map(str, range(len(correct)))), correct, (0.0,) * len(correct))


def one_at_a_time(decoder, question):
    """Summed log-likelihood of each option, by the definition."""
    prompt = TOKENIZER.encode(question.prompt)
    sums = []
    for text in question.options:
        option = TOKENIZER.encode(text)
        logits = all_logits(decoder, torch.tensor([prompt + option]))[0].log_softmax(-1)
        sums.append(sum(float(logits[len(prompt) - 1 + i, t]) for i, t in enumerate(option)))
    return sums


@pytest.mark.parametrize("tokens", [1, 40, 10_000])
def test_batches_and_padding_change_no_answer(tokens, monkeypatch):
    monkeypatch.setattr(task_module, "BATCH_TOKENS", tokens)
    decoder = sure_decoder()
    found = score(decoder, TOKENIZER, QUESTIONS)
    assert found.ids == ("a", "b", "c")
    for question, margin, correct in zip(QUESTIONS, found.margins, found.correct, strict=True):
        sums = one_at_a_time(decoder, question)
        right = sums.pop(question.answer)
        assert margin == pytest.approx(right - max(sums), abs=1e-3)
        assert correct == (margin > 0)


def test_a_function_is_scored_like_a_decoder():
    decoder = sure_decoder()
    with torch.inference_mode():
        by_function = score(lambda ids: all_logits(decoder, ids).numpy(), TOKENIZER, QUESTIONS)
    assert by_function == score(decoder, TOKENIZER, QUESTIONS)


def test_a_model_without_an_opinion_scores_nothing():
    found = score(lambda ids: torch.zeros(*ids.shape, 61), TOKENIZER, QUESTIONS[1:2])
    assert found.score == 0 and found.margins == (0.0,)


def test_logits_that_are_not_finite_are_refused():
    with pytest.raises(MeasurementError, match="not finite"):
        score(lambda ids: torch.full((*ids.shape, 61), math.nan), TOKENIZER, QUESTIONS)
    with pytest.raises(UserError, match="no questions"):
        score(sure_decoder(), TOKENIZER, [])


def test_score_and_standard_error():
    found = result(True, True, True, False)
    assert (found.n, found.score) == (4, 0.75)
    assert found.stderr == pytest.approx(math.sqrt(0.75 * 0.25 / 4))
    assert found.metrics() == {"task_score": 0.75, "task_stderr_ratio": found.stderr}


def test_flips_with_the_exact_test_of_mcnemar():
    before = result(*[True] * 10, *[False] * 2, True, False)
    after = result(*[False] * 10, *[True] * 2, True, False)
    flips = paired_flips(before, after)
    assert (len(flips.lost), len(flips.gained)) == (10, 2)
    # 2 of 12 or fewer, both tails: 2 (1 + 12 + 66) / 2^12
    assert flips.p_value == pytest.approx(2 * 79 / 4096)
    assert paired_flips(before, before).p_value == 1
    with pytest.raises(UserError, match="same questions"):
        paired_flips(before, result(True))


def test_the_shipped_questions_are_sound():
    questions = load_questions()
    assert len(questions) >= 200
    assert all(len(question.options) == 4 for question in questions)
    assert len({question.prompt for question in questions}) == len(questions)
    places = Counter(question.answer for question in questions)
    assert max(places.values()) - min(places.values()) <= 2
    assert set(Counter(q.kind for q in questions[:80])) == set(Counter(q.kind for q in questions))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("not json", "not a question"),
        ("[1]", "not a question"),
        ('{"id": "a"}', "not a question"),
        ('{"id": "a", "kind": "x", "prompt": "p", "options": ["b", "b"], "answer": 0}', "the same"),
        ('{"id": "a", "kind": "x", "prompt": "p", "options": ["b", "c"], "answer": 2}', "none of"),
        ('{"id": "a", "kind": "x", "prompt": "", "options": ["b", "c"], "answer": 0}', "a prompt"),
        ("\n".join(2 * ['{"id":"a","kind":"x","prompt":"p","options":["b","c"],"answer":0}']),
         "same id"),
    ],
)  # fmt: skip
def test_a_file_without_sound_questions_is_refused(tmp_path, line, message):
    path = tmp_path / "mine.jsonl"
    path.write_text(line)
    with pytest.raises(UserError, match=message):
        load_questions(path)
    with pytest.raises(UserError, match="cannot read"):
        load_questions(tmp_path / "none.jsonl")


@pytest.mark.slow
def test_options_of_a_question_have_as_many_tokens_and_none_merges_with_the_prompt():
    """Dividing by the length would change no answer, and what is read is prompt + option."""
    from inferlab.models.load import load_tokenizer

    tokenizer = load_tokenizer("smollm2-135m")

    def encode(text):
        return tokenizer.encode(text, add_special_tokens=False)

    for question in load_questions():
        prompt = encode(question.prompt)
        assert len({len(encode(option)) for option in question.options}) == 1, question.id
        for option in question.options:
            assert encode(question.prompt + option) == prompt + encode(option), question.id
