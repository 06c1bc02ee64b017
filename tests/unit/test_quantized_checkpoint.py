import dataclasses
import json

import pytest
import torch
from compression_examples import SMALL, SMALL_BIASED, all_logits, make_decoder, text

from inferlab.compression.apply import quantize_decoder
from inferlab.compression.checkpoint import (
    HEADER_FILE,
    WEIGHTS_FILE,
    load_quantized,
    save_quantized,
)
from inferlab.errors import UserError
from inferlab.models.fetch import sha256_file
from inferlab.models.projections import projections


def saved(folder, config=SMALL, format="int4-g32", keep=(), kernel="rounded"):
    decoder = quantize_decoder(make_decoder(config), format, kernel=kernel, keep=keep)
    return decoder, save_quantized(decoder, folder / "checkpoint")


@pytest.mark.parametrize("keep", [(), ("head", "layers.1.mlp.down")])
@pytest.mark.parametrize(
    "format", ["int8", "int8-tensor", "int8-asym", "int4-g32", "int4-g32-sym", "int4-channel"]
)
@pytest.mark.parametrize("config", [SMALL, SMALL_BIASED], ids=lambda config: config.name)
def test_what_was_saved_comes_back_bit_by_bit(tmp_path, config, format, keep):
    decoder, folder = saved(tmp_path, config, format, keep)
    loaded = load_quantized(folder, config, kernel="rounded")
    assert torch.equal(all_logits(loaded, text()), all_logits(decoder, text()))
    for (name, new), (_, old) in zip(projections(loaded), projections(decoder), strict=True):
        assert type(new) is type(old), name
    assert sorted(path.name for path in folder.iterdir()) == [HEADER_FILE, WEIGHTS_FILE]
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


@pytest.mark.parametrize("kernel", ["packed", "naive"])
@pytest.mark.parametrize("format", ["int8", "int4-g32"])
def test_codes_survive_a_kernels_own_layout(tmp_path, format, kernel):
    decoder, folder = saved(tmp_path, format=format, kernel=kernel)
    plain = quantize_decoder(make_decoder(), format, kernel="rounded")
    loaded = load_quantized(folder, SMALL, kernel="rounded")
    assert torch.equal(all_logits(loaded, text()), all_logits(plain, text()))
    again = load_quantized(folder, SMALL, kernel=kernel)
    assert torch.equal(all_logits(again, text()), all_logits(decoder, text()))


def test_int4_takes_half_the_bytes_of_int8(tmp_path):
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    sizes = {}
    for name, folder in (("int4-channel", tmp_path / "a"), ("int8-asym", tmp_path / "b")):
        decoder, path = saved(folder, format=name)
        codes = sum(module.in_features * module.out_features for _, module in projections(decoder))
        sizes[name] = (path / WEIGHTS_FILE).stat().st_size
    assert sizes["int8-asym"] - sizes["int4-channel"] == codes / 2


def test_the_dtype_can_be_chosen_when_loading(tmp_path):
    _, folder = saved(tmp_path)
    assert load_quantized(folder, SMALL, "rounded").dtype == torch.float32
    assert load_quantized(folder, SMALL, "rounded", "bfloat16").dtype == torch.bfloat16


def changed(**fields):
    return dataclasses.replace(SMALL, **fields)


@pytest.mark.parametrize(
    "config",
    [
        changed(name="other"),
        changed(num_layers=3),
        changed(rope_theta=500.0),
        changed(tie_embeddings=False),
        changed(vocab_size=128),
    ],
    ids=["name", "layers", "rope", "tied", "vocab"],
)
def test_another_configuration_is_refused_and_named(tmp_path, config):
    _, folder = saved(tmp_path)
    field = next(name for name in SMALL.__slots__ if getattr(config, name) != getattr(SMALL, name))
    with pytest.raises(UserError, match=f"checkpoint of small with {field}.*own configuration"):
        load_quantized(folder, config)


@pytest.mark.parametrize("part", [0, 10, 1000, -1])
def test_truncated_weights_are_refused(tmp_path, part):
    _, folder = saved(tmp_path)
    path = folder / WEIGHTS_FILE
    path.write_bytes(path.read_bytes()[:part])
    with pytest.raises(UserError, match="cut short or changed"):
        load_quantized(folder, SMALL)


def test_one_changed_byte_is_refused(tmp_path):
    _, folder = saved(tmp_path)
    path = folder / WEIGHTS_FILE
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match="another sha256"):
        load_quantized(folder, SMALL)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", '{"schema": "other"}', '{"schema": "inferlab.quantized/1"}', "\udcff"],
)
def test_a_broken_header_is_refused(tmp_path, text):
    _, folder = saved(tmp_path)
    (folder / HEADER_FILE).write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError, match="not a quantized checkpoint"):
        load_quantized(folder, SMALL)


def test_missing_files_are_refused(tmp_path):
    _, folder = saved(tmp_path)
    (folder / WEIGHTS_FILE).unlink()
    with pytest.raises(UserError, match=f"no {WEIGHTS_FILE}"):
        load_quantized(folder, SMALL)
    with pytest.raises(UserError, match="not a quantized checkpoint"):
        load_quantized(tmp_path / "nowhere", SMALL)


def rewrite(folder, change_header=None, change_tensors=None):
    """Change a checkpoint and make its hash right again, as a careless tool would."""
    from safetensors.torch import load_file, save_file

    header = json.loads((folder / HEADER_FILE).read_text())
    tensors = load_file(folder / WEIGHTS_FILE)
    if change_tensors:
        change_tensors(tensors)
        save_file(tensors, folder / WEIGHTS_FILE)
        header["sha256"] = sha256_file(folder / WEIGHTS_FILE)
    if change_header:
        change_header(header)
    (folder / HEADER_FILE).write_text(json.dumps(header))


NAME = "layers.0.mlp.down"
HEADERS = {
    "another format": lambda h: h["formats"][NAME].update(bits=8, name="int8-asym"),
    "another group": lambda h: h["formats"][NAME].update(group_size=16),
    "a symmetric format": lambda h: h["formats"][NAME].update(symmetric=True),
    "a field too many": lambda h: h["formats"][NAME].update(color="red"),
    "no bits": lambda h: h["formats"][NAME].update(bits="many"),
    "a layer too few": lambda h: h["formats"].pop(NAME),
    "a layer too many": lambda h: h["formats"].update(tail=h["formats"][NAME]),
}
TENSORS = {
    "lost codes": lambda t: t.pop(f"{NAME}.codes"),
    "lost norm": lambda t: t.pop("layers.1.mlp_norm.weight"),
    "an extra tensor": lambda t: t.update(extra=torch.ones(1)),
    "scales of NaN": lambda t: t[f"{NAME}.scales"].fill_(float("nan")),
    "scales of another shape": lambda t: t.update({f"{NAME}.scales": torch.ones(64, 2)}),
    "codes of another width": lambda t: t.update({f"{NAME}.codes": t[f"{NAME}.codes"][:32]}),
    "codes of another type": lambda t: t.update({f"{NAME}.codes": t[f"{NAME}.codes"].float()}),
    "a norm of another size": lambda t: t.update({"norm.weight": torch.ones(3)}),
}


@pytest.mark.parametrize("fault", HEADERS)
def test_a_header_that_does_not_match_the_weights_is_refused(tmp_path, fault):
    _, folder = saved(tmp_path)
    rewrite(folder, change_header=HEADERS[fault])
    with pytest.raises(UserError) as caught:
        load_quantized(folder, SMALL, kernel="rounded")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("fault", TENSORS)
def test_weights_that_do_not_match_the_header_are_refused(tmp_path, fault):
    _, folder = saved(tmp_path)
    rewrite(folder, change_tensors=TENSORS[fault])
    with pytest.raises(UserError, match="does not hold a whole small"):
        load_quantized(folder, SMALL, kernel="rounded")


def test_what_cannot_be_saved_is_refused(tmp_path):
    with pytest.raises(UserError, match="nothing in this decoder is quantized"):
        save_quantized(make_decoder(), tmp_path / "plain")
    decoder, folder = saved(tmp_path)
    with pytest.raises(UserError, match="is not empty"):
        save_quantized(decoder, folder)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="is not empty"):
        save_quantized(decoder, tmp_path / "file")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint", "file"]
    save_quantized(decoder, tmp_path / "new" / "folders")
