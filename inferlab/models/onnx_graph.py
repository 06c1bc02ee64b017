"""Which weights of an ONNX graph are quantized, how, and how many bytes does a step read?

Counted from the graph's own weights, so that a comparison rests on what the file holds and not on
what an option was called.
Chapter: chapters/10_quantization.md    Lab: labs/10_quantization.ipynb
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from inferlab.errors import UserError
from inferlab.quant.formats import WeightFormat

FULL_GRAPH = "model.onnx"  # logits of all positions
LAST_GRAPH = "model.last.onnx"  # logits of the last position: what a prefill needs
TABLE_OPS = ("Gather", "GatherBlockQuantized")  # read single rows
RESHAPING_OPS = ("Transpose", "Reshape")  # folded into the weight when the graph is loaded
POSITION_TABLES = ("cos_cache", "sin_cache")  # single rows are read


@dataclass(frozen=True, slots=True)
class BlockFormat(WeightFormat):
    """ONNX's block-wise weights: codes, a float scale a block, a packed zero point if asymmetric.

    The last block of a row is filled up when `group_size` does not divide the inputs.
    """

    scale_bytes: int = 4

    def num_groups(self, in_features: int) -> int:
        """Blocks in one output channel, the filled-up one included."""
        return math.ceil(in_features / self.group_size)

    def matrix_bytes(self, out_features: int, in_features: int) -> float:
        """Bytes of a matrix [out, in]: codes, scales, zero points."""
        groups = self.num_groups(in_features)
        codes = groups * self.group_size * self.bits / 8
        zero_points = 0 if self.symmetric else math.ceil(groups * self.bits / 8)
        return out_features * (codes + groups * self.scale_bytes + zero_points)


@dataclass(frozen=True, slots=True)
class GraphFacts:
    """What the graph says about its weights."""

    step_bytes: int  # read by one forward pass: all but tables of which single rows are read
    quantized: tuple[str, ...]  # names of the products with quantized weights
    unquantized: tuple[str, ...]  # names of the other products with weights
    weight_format: BlockFormat | None  # of all quantized products; None when there is none
    accuracy_level: int | None  # 4: activations are rounded to int8 too
    embedding_bits: int  # of the embedding table: 32, 16, or the format's


def read_graph(path: Path) -> GraphFacts:
    """Facts of the graph file `path`; weight values are not read.

    UserError when the file is no graph or its products do not share one format.
    """
    graph = _load(path).graph
    sizes = {tensor.name: _num_bytes(tensor) for tensor in graph.initializer}
    number_bits = {tensor.name: 8 * _itemsize(tensor) for tensor in graph.initializer}
    origin = {node.output[0]: node.input[0] for node in graph.node if node.op_type in RESHAPING_OPS}
    read, quantized, unquantized, formats, levels = set(), [], [], set(), set()
    embedding_bits = 32
    for node in graph.node:
        weights = [_root(name, origin) for name in node.input if _root(name, origin) in sizes]
        attributes = {a.name: a.i for a in node.attribute}
        if node.op_type in TABLE_OPS:
            if "input_ids" in node.input:
                quantized_bits = attributes.get("bits", 4)
                is_quantized = node.op_type == "GatherBlockQuantized"
                embedding_bits = quantized_bits if is_quantized else number_bits[weights[0]]
            continue
        if node.op_type in RESHAPING_OPS:
            continue
        read.update(name for name in weights if name not in POSITION_TABLES)
        if node.op_type == "MatMulNBits":
            quantized.append(node.name)
            formats.add(_format(node, attributes, number_bits))
            levels.add(attributes.get("accuracy_level", 0))
        elif node.op_type in ("MatMul", "Gemm") and weights:
            unquantized.append(node.name)
    if len(formats) > 1 or len(levels) > 1:
        raise UserError(f"{path.name} mixes weight formats: export it with one precision")
    return GraphFacts(
        step_bytes=sum(sizes[name] for name in read),
        quantized=tuple(quantized),
        unquantized=tuple(unquantized),
        weight_format=next(iter(formats), None),
        accuracy_level=next(iter(levels), None),
        embedding_bits=embedding_bits,
    )


def write_last_position_graph(folder: Path) -> None:
    """Write LAST_GRAPH beside FULL_GRAPH: the head multiplies the last position only.

    Both graphs read the same weight file. GenAI picks the last position's logits anyway; the
    product with the head for all others is work that no prefill of the other backends does.
    The last column must then hold every sequence's newest token: prompts of equal length.
    """
    from onnx import TensorProto, helper

    model = _load(folder / FULL_GRAPH)
    graph = model.graph
    made_by = {name: node for node in graph.node for name in node.output}
    head = made_by.get("logits")
    while (
        head is not None and head.op_type == "Cast"
    ):  # logits are float32, whatever it computes in
        head = made_by.get(head.input[0])
    if head is None or head.op_type not in ("MatMul", "MatMulNBits"):
        raise UserError(f"{FULL_GRAPH} does not end in a head that inferlab knows")
    hidden = head.input[0]
    position = helper.make_tensor("last_position", TensorProto.INT64, [1], [-1])
    graph.initializer.append(position)
    pick = helper.make_node("Gather", [hidden, position.name], ["last_hidden"], axis=1)
    graph.node.insert(list(graph.node).index(head), pick)
    head.input[0] = pick.output[0]
    shapes = [info for info in graph.value_info if info.name not in head.output]
    del graph.value_info[:]
    graph.value_info.extend(shapes)
    (logits,) = [output for output in graph.output if output.name == "logits"]
    logits.type.tensor_type.shape.dim[1].Clear()
    logits.type.tensor_type.shape.dim[1].dim_value = 1
    (folder / LAST_GRAPH).write_bytes(model.SerializeToString())


def _load(path: Path):
    import onnx

    try:
        return onnx.load(str(path), load_external_data=False)
    except Exception as error:  # protobuf's own errors have no common base that is public
        raise UserError(
            f"cannot read the ONNX graph {path.name} in {path.parent}: delete that folder and run "
            "again"
        ) from error


def _root(name: str, origin: dict[str, str]) -> str:
    while name in origin:
        name = origin[name]
    return name


def _itemsize(tensor) -> int:
    from onnx import helper

    return helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize


def _num_bytes(tensor) -> int:
    """Bytes of a weight; constants of the graph's own bookkeeping count nothing."""
    from onnx import TensorProto

    if tensor.data_type in (TensorProto.INT64, TensorProto.INT32, TensorProto.BOOL):
        return 0
    return math.prod(tensor.dims) * _itemsize(tensor)


def _format(node, attributes: dict[str, int], number_bits: dict[str, int]) -> BlockFormat:
    bits, block = attributes["bits"], attributes["block_size"]
    symmetric = len(node.input) < 4 or not node.input[3]
    name = f"onnx-int{bits}-b{block}-{'sym' if symmetric else 'asym'}"
    return BlockFormat(name, bits, block, symmetric, number_bits[node.input[2]] // 8)
