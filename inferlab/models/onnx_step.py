"""How does a decode step of our own decoder become an ONNX graph?

One token in, its logits out; keys and values of all positions go in and come back one longer, so
that the graph keeps nothing. Written by torch's exporter, once, into the cache of models. As
`traced` it is what the exporter saw; as `folded` the exporter has simplified it first.
Chapter: chapters/27_graphs.md    Lab: labs/27_graphs.ipynb
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import io
import logging
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch

from inferlab.errors import UserError
from inferlab.models.cachefolder import CachedFolder, cache_root
from inferlab.models.config import ModelConfig, get_config
from inferlab.models.cost import weight_bytes
from inferlab.models.decoder import Decoder
from inferlab.models.fetch import Progress
from inferlab.models.load import load_decoder
from inferlab.models.placement import check_host_memory
from inferlab.models.store import model_version

SCHEMA = "inferlab.onnx-step/1"
GRAPH = "step.onnx"
GRAPHS = ("traced", "folded")
# The last one in which a norm and attention are still written out: what is fused is then the
# runtime's doing.
OPSET = 18
PACKAGES = ("onnx", "onnxscript", "onnxruntime-gpu")
SAMPLE_CONTEXT_LEN = 5  # of the example that is traced; no size of the graph depends on it


class Past:
    """Keys and values that come as inputs and leave longer: a cache without memory."""

    recomputes = False

    def __init__(self, past: tuple[torch.Tensor, ...]) -> None:
        self.length = 0  # unknown to the graph; the rotary table is made before
        self.past = past  # [B, G, S - 1, D] each: keys of layer 0, its values, keys of layer 1, ...
        self.present: list[torch.Tensor] = []

    def update(
        self, layer: int, keys: torch.Tensor, values: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """All positions [B, G, S, D] of a layer, the new one last."""
        longer = [
            torch.cat((old, new), dim=2)
            for old, new in zip(self.past[2 * layer : 2 * layer + 2], (keys, values), strict=True)
        ]
        self.present += longer
        return longer[0], longer[1]

    def advance(self, num_positions: int) -> None:
        """Nothing to count."""


class DecodeStep(torch.nn.Module):
    """The decoder as a function: (token [1, 1], position [1, 1], past) -> (logits, present)."""

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        self.decoder = decoder
        decoder.reserve(decoder.config.max_context_len)

    def forward(
        self, token_ids: torch.Tensor, positions: torch.Tensor, *past: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """Logits [1, V], then keys and values [1, G, S, D] of every layer."""
        cache = Past(past)
        return self.decoder(token_ids, cache, positions), *cache.present


def past_names(config: ModelConfig) -> list[str]:
    """Inputs that carry the cache, in order; outputs are called `present` instead."""
    return [f"past.{i}.{part}" for i in range(config.num_layers) for part in ("key", "value")]


def check_packages() -> str:
    """Version of the exporter's library; a UserError that says what to install without it."""
    for package in PACKAGES:
        try:
            importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError as error:
            raise UserError(
                f"{package} is not installed: run `pip install -r requirements.txt`"
            ) from error
    return importlib.metadata.version("onnxscript")


def step_folder(config: ModelConfig, graph: str, weights: str = "real") -> CachedFolder:
    """Where the float32 step of `config` lies when it is there."""
    if graph not in GRAPHS:
        raise UserError(f"unknown graph {str(graph)[:40]!r}; known: {', '.join(GRAPHS)}")
    version = check_packages()
    if weights == "random":
        model = "random" + hashlib.sha256(repr(config).encode()).hexdigest()[:12]
    else:
        model = model_version(config)[:12]
    torch_version = torch.__version__.partition("+")[0]
    name = f"{config.name}-{model}-step-{graph}-torch{torch_version}-onnxscript{version}"
    shown = f"a step of {config.name} as a {graph} ONNX graph"
    return CachedFolder(cache_root() / "onnx" / name, shown, "ONNX export", SCHEMA, GRAPH)


def ensure_step(
    config: ModelConfig,
    graph: str = "traced",
    weights: str = "real",
    progress: Progress | None = None,
) -> Path:
    """The verified graph file, exported first if needed (smollm2-135m: about 20 s)."""
    cached = step_folder(config, graph, weights)

    def build(folder: Path, tell: Progress) -> dict:
        tell(f"exporting {cached.name}, once (about 20 s) ...")
        decoder = load_decoder(config, "float32", "cpu", weights, pack=False)
        export_step(decoder, folder / GRAPH, folds=graph == "folded")
        return {"exporter": f"torch=={torch.__version__}", "graph": graph}

    full = weight_bytes(config, "float32")
    if cached.find() is None:
        check_host_memory(10**9 + 3 * full, f"exporting {cached.name}", torch.device("cpu"))
    return cached.ensure(build, 1.5 * full, progress) / GRAPH


def export_step(decoder: Decoder, path: Path, folds: bool = False) -> None:
    """Write one decode step of `decoder` (float32, plain weights) to `path` and `path`.data.

    `folds` lets the exporter fold constants and simplify first. Raises UserError when it fails.
    """
    config = decoder.config
    shape = (1, config.num_kv_heads, SAMPLE_CONTEXT_LEN, config.head_dim)
    names = past_names(config)
    example = (torch.tensor([[1]]), torch.tensor([[SAMPLE_CONTEXT_LEN]]))
    past = tuple(torch.randn(shape) for _ in names)
    growing = tuple({2: torch.export.Dim.DYNAMIC} for _ in names)
    try:
        with _quiet(), torch.no_grad():
            program = torch.onnx.export(
                DecodeStep(decoder),
                (*example, *past),
                dynamo=True,
                opset_version=OPSET,
                optimize=folds,
                input_names=["token_ids", "positions", *names],
                output_names=["logits", *(name.replace("past", "present") for name in names)],
                dynamic_shapes=(None, None, growing),
            )
            program.save(path, external_data=True)
    except (RuntimeError, TypeError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"the ONNX export failed: {reason[:200]}; check that {', '.join(PACKAGES)} have the "
            "versions of requirements.txt"
        ) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter tells its progress on stdout and warns about its own internals."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            logger.setLevel(level)


def main() -> int:
    """Export the embedded model's step ahead of time; 0, or the exit code of an error."""
    try:
        print(ensure_step(get_config("smollm2-135m")))
    except UserError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
