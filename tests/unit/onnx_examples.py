"""Small ONNX graphs, a builder that writes them, and a GenAI that counts instead of computing."""

import json
import subprocess
import types

import numpy as np
from onnx import TensorProto, helper, save

VOCABULARY = 61


def weight(name, dims, kind=TensorProto.FLOAT):
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    return helper.make_tensor(name, kind, dims, np.zeros(dims, dtype).tobytes(), raw=True)


def graph(quantized=True, symmetric=True, bits=4, block=32, level=4):
    """Embedding, one norm and a head over 48 channels, tied as GenAI's builder ties them."""
    blocks = -(-48 // block)
    scales = [weight("scales", [VOCABULARY * blocks])]
    if not symmetric:
        scales.append(weight("zeros", [VOCABULARY * -(-blocks * bits // 8)], TensorProto.UINT8))
    if quantized:
        codes = weight("codes", [VOCABULARY, blocks, block * bits // 8], TensorProto.UINT8)
        head = helper.make_node(
            "MatMulNBits", ["normed", codes.name, *[s.name for s in scales]], ["logits"], "/head",
            domain="com.microsoft", K=48, N=VOCABULARY, bits=bits, block_size=block,
            accuracy_level=level,
        )  # fmt: skip
        table = helper.make_node("Reshape", ["codes", "shape"], ["table"])
        embed = helper.make_node(
            "GatherBlockQuantized", ["table", "input_ids", "scales"], ["x"],
            domain="com.microsoft", bits=bits, block_size=block,
        )  # fmt: skip
        weights = [codes, *scales]
    else:
        head = helper.make_node("MatMul", ["normed", "table"], ["logits"], "/head")
        table = helper.make_node("Transpose", ["codes"], ["table"])
        embed = helper.make_node("Gather", ["codes", "input_ids"], ["x"])
        weights = [weight("codes", [VOCABULARY, 48])]
    norm = helper.make_node("SimplifiedLayerNormalization", ["x", "norm"], ["normed"])
    positions = weight("cos_cache", [128, 8])
    turn = helper.make_node("RotaryEmbedding", ["normed", "cos_cache"], ["turned"])
    shape = helper.make_tensor("shape", TensorProto.INT64, [2], [VOCABULARY, -1])
    ids = helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "length"])
    logits = helper.make_tensor_value_info(
        "logits", TensorProto.FLOAT, ["batch", "length", VOCABULARY]
    )
    nodes = [table, embed, norm, turn, head]
    weights += [weight("norm", [48]), positions, shape]
    return helper.make_model(helper.make_graph(nodes, "tiny", [ids], [logits], weights))


def write_export(folder, **kind):
    """What the builder leaves in `folder`."""
    save(graph(**kind), folder / "model.onnx")
    settings = {"model": {"eos_token_id": [1, 2], "vocab_size": VOCABULARY}}
    (folder / "genai_config.json").write_text(json.dumps(settings))


class Builder:
    """Stands for `subprocess.run`: writes an export, or fails in the way that `how` says."""

    def __init__(self, how="works"):
        self.how = how
        self.commands = []

    def __call__(self, command, **_):
        self.commands.append(command)
        from pathlib import Path

        folder = Path(command[command.index("-o") + 1])
        write_export(folder, quantized="fp32" not in command)
        code, said = {
            "works": (0, ""),
            "disk": (1, "Traceback:\nOSError: [Errno 28] No space left on device\n"),
            "killed": (-9, ""),
            "error": (1, "Traceback (most recent call last):\nValueError: no such layer\n\n"),
        }[self.how]
        return subprocess.CompletedProcess(command, code, "", said)


class FakeGenAI(types.SimpleNamespace):
    """GenAI whose next token is the last one plus one; `failing` names what raises."""

    def __init__(self, failing=None, message="it broke"):
        super().__init__(loaded=[])
        fake = self

        class Config:
            def __init__(self, folder):
                self.model = {}

            def overlay(self, text):
                self.model |= json.loads(text)["model"]

            def clear_providers(self):
                pass

        class Model:
            def __init__(self, config):
                if failing == "load":
                    raise RuntimeError(message)
                self.model = config.model
                fake.loaded.append(config.model)

        class GeneratorParams:
            def __init__(self, model):
                self.options = {}

            def set_search_options(self, **options):
                self.options = options

        class Generator:
            def __init__(self, model, params):
                self.end = model.model["eos_token_id"]
                self.room = params.options["max_length"]

            def append_tokens(self, rows):
                if failing == "run":
                    raise RuntimeError(message)
                self.last = [[t for t in row if t >= 0][-1] for row in rows.tolist()]
                self.length = rows.shape[1]
                self.over = [False] * len(rows)

            def generate_next_token(self):
                self.length += 1
                assert self.length <= self.room
                self.last = [
                    -1 if over else (last + 1) % VOCABULARY
                    for last, over in zip(self.last, self.over, strict=True)
                ]
                self.over = [
                    over or last == self.end
                    for last, over in zip(self.last, self.over, strict=True)
                ]

            def get_next_tokens(self):
                return np.array(self.last, dtype=np.int32)

            def is_done(self):
                return all(self.over) or self.length == self.room

            def get_output(self, name):
                return np.zeros((len(self.last), self.length, VOCABULARY), np.float32)

        self.Config, self.Model = Config, Model
        self.GeneratorParams, self.Generator = GeneratorParams, Generator
