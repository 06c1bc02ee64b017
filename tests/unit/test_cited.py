"""A cited figure comes with conditions, a source and the kind of evidence; sums are shown."""

import pytest

from inferlab import cited
from inferlab.cited import Figure, Source, load_cited
from inferlab.datafile import DataError
from inferlab.errors import UserError

FIGURES = load_cited()

# figure -> the figures whose quotient it must be, to the digits it is quoted with
QUOTIENTS = {
    "gpt-fast-blog-speedup": ("gpt-fast-blog-llama2-7b-bf16", "gpt-fast-blog-llama2-7b-eager"),
    "gpt-fast-mbu-of-datasheet": (
        "gpt-fast-llama2-7b-bf16-bytes-per-s", "datasheet-a100-80gb-read-bytes-per-s",
    ),
    "gpt-fast-mbu-of-measured": ("gpt-fast-llama2-7b-bf16-bytes-per-s", "gpt-fast-a100-ceiling"),
    "gpt-fast-mbu-int8": ("gpt-fast-llama2-7b-int8-bytes-per-s", "gpt-fast-a100-ceiling"),
    "gpt-fast-mbu-int4": ("gpt-fast-llama2-7b-int4-bytes-per-s", "gpt-fast-a100-ceiling"),
    "sglang-llama3.1-8b-h100-mbu": (
        "sglang-llama3.1-8b-h100-bytes-per-s", "datasheet-h100-sxm-read-bytes-per-s",
    ),
    "torchao-smoothquant-true-ratio": ("torchao-smoothquant-int8", "torchao-smoothquant-bf16"),
    "inferentia2-bandwidth-ratio": ("inferentia2-bytes-per-s", "inferentia1-bytes-per-s"),
}  # fmt: skip


@pytest.mark.parametrize("figure_id", QUOTIENTS)
def test_a_derived_ratio_follows_from_its_parts(figure_id):
    assert cited.ratio(*QUOTIENTS[figure_id]) == pytest.approx(FIGURES[figure_id].value, rel=0.01)


def test_floors_follow_from_bytes_and_bandwidth():
    value = {name: figure.value for name, figure in FIGURES.items()}
    assert value["floor-llama3.1-8b-bf16-h200"] == pytest.approx(15.0e9 / 4.3e12, rel=0.01)
    assert value["floor-smollm2-135m-bf16-h200"] == pytest.approx(269e6 / 4.3e12, rel=0.01)
    assert value["kv-bytes-llama3.1-8b"] == 2 * 32 * 8 * 128 * 2
    assert value["kv-bytes-smollm2-135m"] == 2 * 30 * 3 * 64 * 2
    slope = value["vllm-llama3.1-8b-h100-itl-slope"]
    bandwidth = value["datasheet-h100-sxm-read-bytes-per-s"]
    kv_mbu = value["kv-bytes-llama3.1-8b"] / slope / bandwidth
    assert kv_mbu == pytest.approx(value["vllm-llama3.1-8b-h100-kv-mbu"], rel=0.02)
    weights_mbu = 15.0e9 / value["vllm-llama3.1-8b-h100-itl-intercept"] / bandwidth
    assert weights_mbu == pytest.approx(value["vllm-llama3.1-8b-h100-weights-mbu"], rel=0.02)
    gib = 2**30
    for rate, size, found in (
        ("cpu-i3-1315u-llama3.2-3b-q4", 1.87 * gib, "cpu-i3-1315u-bytes-per-s"),
        ("cpu-i5-4278u-llama3.2-3b-q4", 1.87 * gib, "cpu-i5-4278u-bytes-per-s"),
        ("cpu-llama-bench-7b-q4-t8", 3.56 * gib, "cpu-llama-bench-7b-q4-t8-bytes-per-s"),
    ):
        assert value[rate] * size == pytest.approx(value[found], rel=0.01)


def test_figures_above_their_ceiling_are_found():
    names = {name: factor for name, _, factor in cited.contradictions(FIGURES)}
    assert names["spheron-llama3.3-70b-fp8-h200"] > 6
    assert names["ai-infra-index-llama2-70b-fp16-h200"] > 4
    assert names["torchao-smoothquant-bf16-bytes-per-s"] > 2
    assert len(names) == 3


def test_a_lookup_proposes_what_it_may_have_meant():
    assert cited.get("gpt-fast-llama2-7b-bf16").value == 104.9
    with pytest.raises(UserError, match="did you mean gpt-fast-llama2-7b-bf16"):
        cited.get("gpt-fast-llama-7b-bf16")
    with pytest.raises(UserError, match="have no ratio"):
        cited.ratio("gpt-fast-llama2-7b-bf16", "gpt-fast-blog-mbu")


def test_text_and_reference():
    figure = cited.get("vllm-llama3.1-8b-h100-itl-intercept")
    assert figure.text == "6.44 ms"
    assert figure.reference.startswith("cited: vLLM: FP8 KV cache; vLLM 0.19.1, Llama-3.1-8B")
    assert cited.get("gpt-fast-mbu-int4").reference.startswith("derived from gpt-fast README")
    assert cited.get("datasheet-h200-read-bytes-per-s").text == "4.80 TB/s"
    assert cited.get("vllm-llama3.1-8b-h100-itl-slope").text == "43.7 ns per token"


HEAD = 'sources:\n  - source: {title: t, url: "https://example.org"}\n    figures:\n      - '
FIELDS = "id: a, value: 1, unit: s, what: x, conditions: y"


@pytest.mark.parametrize(
    ("entry", "match"),
    [
        (f"{{{FIELDS}, evidence: primary, mood: good}}", "a: mood: unknown key"),
        (f"{{{FIELDS}, evidence: memory}}", "evidence"),
        (f"{{{FIELDS}, evidence: derived}}", "`how` belongs to derived"),
        (f"{{{FIELDS}, evidence: primary, how: z}}", "`how` belongs to derived"),
        ("{id: a, value: 1, unit: ms, what: x, conditions: y, evidence: primary}", "unit"),
        ("{id: a, value: .nan, unit: s, what: x, conditions: y, evidence: primary}", "finite"),
        ("{id: a, value: 1, unit: s, what: x, evidence: primary}", "conditions: Field required"),
        ("{value: 1}", "a figure without id"),
        ("{id: ../a, value: 1}", "id: String should match"),
        (f"{{{FIELDS}, evidence: primary, source: {{}}}}", "multiple values"),
    ],
)  # fmt: skip
def test_a_bad_entry_is_one_clear_line(tmp_path, entry, match):
    (tmp_path / "x.yml").write_text(HEAD + entry + "\n")
    with pytest.raises(DataError, match=match) as caught:
        load_cited(tmp_path)
    assert "x.yml" in str(caught.value) and "\n" not in str(caught.value)


def test_an_id_is_cited_once(tmp_path):
    for name in ("x.yml", "y.yml"):
        (tmp_path / name).write_text(HEAD + f"{{{FIELDS}, evidence: primary}}\n")
    with pytest.raises(DataError, match="a is already cited"):
        load_cited(tmp_path)


@pytest.mark.parametrize("url", ["http://x", "javascript:alert(1)", 'https://x"><script>'])
def test_only_plain_https_addresses(url):
    with pytest.raises(ValueError, match="url"):
        Source(title="t", url=url)


def test_figures_are_immutable():
    figure = Figure(
        id="a", value=1, unit="s", what="x", conditions="y", evidence="primary",
        source=Source(title="t", url="https://example.org"),
    )  # fmt: skip
    with pytest.raises(ValueError, match="frozen"):
        figure.value = 2
