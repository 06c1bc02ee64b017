import numpy as np
import pytest
from onnx import load, save
from onnx_examples import VOCABULARY, graph, write_export

from inferlab.errors import UserError
from inferlab.models import onnx_graph
from inferlab.models.config import get_config
from inferlab.models.cost import head_params, weight_read_bytes
from inferlab.models.onnx_graph import BlockFormat, read_graph, write_last_position_graph

NORM_BYTES = 48 * 4


def test_a_float_table_is_counted_once_and_position_tables_are_not(tmp_path):
    save(graph(quantized=False), tmp_path / "model.onnx")
    facts = read_graph(tmp_path / "model.onnx")
    assert facts.step_bytes == VOCABULARY * 48 * 4 + NORM_BYTES
    assert facts.unquantized == ("/head",) and facts.quantized == ()
    assert facts.weight_format is None and facts.accuracy_level is None
    assert facts.embedding_bits == 32


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("bits", "block"), [(4, 16), (4, 32), (4, 128), (8, 32)])
def test_bytes_of_the_format_are_those_of_the_file(tmp_path, bits, block, symmetric):
    """The last block of a row is filled up: 48 inputs are two blocks of 32."""
    save(graph(bits=bits, block=block, symmetric=symmetric), tmp_path / "model.onnx")
    facts = read_graph(tmp_path / "model.onnx")
    format = facts.weight_format
    assert (format.bits, format.group_size, format.symmetric) == (bits, block, symmetric)
    assert facts.step_bytes == format.matrix_bytes(VOCABULARY, 48) + NORM_BYTES
    assert facts.quantized == ("/head",) and facts.unquantized == ()
    assert facts.accuracy_level == 4 and facts.embedding_bits == bits


def test_the_roofline_takes_the_format():
    config = get_config("smollm2-135m")
    format = BlockFormat("onnx-int4-b32-sym", 4, 32, True)
    assert format.bytes_per_weight(576) == 0.5 + 4 / 32
    plain = weight_read_bytes(config, "float32")
    read = weight_read_bytes(config, "float32", format)
    assert read / plain == pytest.approx(0.625 / 4, rel=0.01)
    assert plain - read > head_params(config) * 3  # the head is quantized too


def test_mixed_formats_are_refused(tmp_path):
    model, other = graph(), graph(bits=8)
    head = next(n for n in other.graph.node if n.op_type == "MatMulNBits")
    head.output[0] = "logits2"
    model.graph.node.append(head)
    save(model, tmp_path / "model.onnx")
    with pytest.raises(UserError, match="mixes weight formats"):
        read_graph(tmp_path / "model.onnx")


@pytest.mark.parametrize("quantized", [True, False])
def test_the_second_graph_multiplies_the_last_position_only(tmp_path, quantized):
    write_export(tmp_path, quantized=quantized)
    write_last_position_graph(tmp_path)
    last = load(tmp_path / onnx_graph.LAST_GRAPH)
    (logits,) = last.graph.output
    assert [d.dim_param or d.dim_value for d in logits.type.tensor_type.shape.dim] == [
        "batch", 1, VOCABULARY,
    ]  # fmt: skip
    nodes = list(last.graph.node)
    head = next(n for n in nodes if "logits" in n.output)
    pick = next(n for n in nodes if head.input[0] in n.output)
    assert pick.op_type == "Gather" and pick.input[0] == "normed"
    assert nodes.index(pick) < nodes.index(head)
    assert read_graph(tmp_path / "model.onnx") == read_graph(tmp_path / onnx_graph.LAST_GRAPH)


def test_the_second_graph_gives_the_last_logits(tmp_path):
    """Run for real: what the session says of the last position, for every length."""
    from onnx import TensorProto, helper

    from inferlab.backends.genai import real_providers

    assert real_providers() == ["CPUExecutionProvider"]
    import onnxruntime

    table = np.random.default_rng(0).normal(size=(VOCABULARY, 8)).astype(np.float32)
    ids = helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "length"])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", "length", 61])
    weights = [
        helper.make_tensor("table", TensorProto.FLOAT, table.shape, table.tobytes(), raw=True)
    ]
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["x"]),
        helper.make_node("Transpose", ["table"], ["turned"], perm=[1, 0]),
        helper.make_node("MatMul", ["x", "turned"], ["logits"]),
    ]
    made = helper.make_graph(nodes, "g", [ids], [logits], weights)
    opset = [helper.make_opsetid("", 17)]
    save(helper.make_model(made, opset_imports=opset, ir_version=8), tmp_path / "model.onnx")
    write_last_position_graph(tmp_path)
    sessions = [
        onnxruntime.InferenceSession(tmp_path / name, providers=["CPUExecutionProvider"])
        for name in (onnx_graph.FULL_GRAPH, onnx_graph.LAST_GRAPH)
    ]
    for length in (1, 5):
        tokens = np.arange(2 * length).reshape(2, length)
        whole, last = (s.run(None, {"input_ids": tokens})[0] for s in sessions)
        assert last.shape == (2, 1, VOCABULARY)
        np.testing.assert_allclose(last, whole[:, -1:], rtol=1e-6)


def test_a_head_whose_logits_are_converted_is_found(tmp_path):
    from onnx import TensorProto, helper

    model = graph(quantized=False)
    model.graph.node[-1].output[0] = "half"
    cast = helper.make_node("Cast", ["half"], ["logits"], to=TensorProto.FLOAT)
    model.graph.node.append(cast)
    shape = helper.make_tensor_value_info("half", TensorProto.BFLOAT16, ["batch", "length", 61])
    model.graph.value_info.append(shape)
    save(model, tmp_path / "model.onnx")
    write_last_position_graph(tmp_path)
    last = load(tmp_path / onnx_graph.LAST_GRAPH)
    assert [n.op_type for n in last.graph.node][-3:] == ["Gather", "MatMul", "Cast"]
    assert not last.graph.value_info


def test_a_head_of_another_kind_is_refused(tmp_path):
    model = graph()
    model.graph.node[-1].output[0] = "other"
    save(model, tmp_path / "model.onnx")
    with pytest.raises(UserError, match="does not end in a head"):
        write_last_position_graph(tmp_path)
