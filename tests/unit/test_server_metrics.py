"""An answered request counts once, whoever sees first that it is complete."""

import pytest
from server_examples import Stats

from inferlab.server.prometheus import ServerMetrics
from inferlab.server.reply import Answer, AnswerForm
from inferlab.server.stream import AnswerText
from inferlab.server.text import NumberCodec
from inferlab.server.worker import TokenStream

FORM = AnswerForm("tiny", 0, chat=False, streamed=True, usage=False, token_ids=False)


def successes(metrics):
    """{reason: count} of the page."""
    lines = [line for line in metrics.text().decode().split("\n") if "success_total{" in line]
    return {line.split('"')[1]: float(line.rpartition(" ")[2]) for line in lines}


def heard(metrics, stream, token_id, reason=None):
    metrics.token(stream, 1.0, reason)
    stream.push(token_id, reason)


@pytest.mark.parametrize("ahead", [0, 1, 2])
def test_a_stop_string_and_the_last_token_count_once(ahead):
    """The stop string is in token 3; the engine is `ahead` tokens, the last of which ends it."""
    metrics, stream = ServerMetrics("tiny", Stats), TokenStream("a", [1], 3)
    text = AnswerText(NumberCodec().decoding(), (" 3",))
    answer = Answer(None, stream, text, FORM, metrics)
    left = [(2, None), (3, None), (4, None), (5, "length")]
    for token in left[: 2 + ahead]:
        heard(metrics, stream, *token)
    pieces = answer._pieces(stream.pending)
    assert [reason for _, _, reason in pieces] == [None, "stop"]
    for token in left[2 + ahead :]:  # what the engine makes before it hears that it may stop
        heard(metrics, stream, *token)
    assert successes(metrics) == ({"length": 1.0} if ahead == 2 else {"stop": 1.0})
    page = metrics.text().decode()
    assert 'e2e_request_latency_seconds_count{model_name="tiny"} 1.0' in page


def test_a_stop_string_in_the_last_token_counts_as_the_engine_has_it():
    metrics, stream = ServerMetrics("tiny", Stats), TokenStream("a", [1], 2)
    answer = Answer(None, stream, AnswerText(NumberCodec().decoding(), (" 3",)), FORM, metrics)
    heard(metrics, stream, 2)
    heard(metrics, stream, 3, "length")
    assert answer._pieces(stream.pending)[-1][2] == "stop"
    assert successes(metrics) == {"length": 1.0}
