"""How does a model become an ONNX graph with its weights in few bits, once?

ONNX Runtime GenAI's own model builder writes it, in a process of its own, from a folder of
safetensors; a second graph over the same weights computes logits of the last position only. Kept
in the cache like a model: made in a temporary folder, hashed, renamed when complete.
Chapter: chapters/10_quantization.md    Lab: labs/10_quantization.ipynb
"""

from __future__ import annotations

import errno
import hashlib
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from inferlab.errors import UserError
from inferlab.models.cachefolder import CachedFolder, cache_root
from inferlab.models.config import ModelConfig, get_config
from inferlab.models.cost import weight_bytes
from inferlab.models.equivalent import equivalent_config, save_equivalent
from inferlab.models.fetch import Progress
from inferlab.models.hf import family
from inferlab.models.onnx_graph import LAST_GRAPH, write_last_position_graph
from inferlab.models.placement import check_host_memory
from inferlab.models.store import ensure_model, model_version

SCHEMA = "inferlab.onnx/1"
BUILDER = "onnxruntime_genai.models.builder"
PACKAGES = ("onnxruntime-gpu", "onnxruntime-genai-cuda", "onnx", "onnx-ir")
# Without this, importing ONNX Runtime starts two threads that write a device id into the user's
# cache and report to its maker: nothing of a measurement leaves the machine, nor shares its cores.
NO_TELEMETRY = {"ORT_DISABLE_TELEMETRY": "1"}
PRECISIONS = {"cpu": ("int4", "int8", "fp32"), "cuda": ("int4", "int8", "fp16", "bf16", "fp32")}
BLOCK_SIZES = (16, 32, 64, 128, 256)
HEAD_MULTIPLE = 16
ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """What is exported, and how its weights are rounded (the last three: int4 and int8 only).

    `block_size` inputs of one output share a scale, and with `is_symmetric` false a zero point.
    `accuracy_level`, the builder's word: 4 also rounds the activations to int8, in blocks, at each
    product; 1 multiplies in float32; None is the builder's own choice (4 on a CPU).
    """

    precision: str = "int4"
    equivalent: str = "plain"  # a kind of models.equivalent
    seed: int = 0  # of the rotation
    weights: str = "real"
    device: str = "cpu"
    block_size: int = 32
    is_symmetric: bool = True
    accuracy_level: int | None = None

    def __post_init__(self) -> None:
        known = PRECISIONS[self.device]
        if self.precision not in known:
            raise UserError(
                f"unknown precision {str(self.precision)[:40]!r} of an ONNX export for "
                f"{self.device}; known: {', '.join(known)}"
            )
        if self.block_size not in BLOCK_SIZES:
            sizes = ", ".join(map(str, BLOCK_SIZES))
            raise UserError(f"block_size must be one of {sizes}, not {self.block_size!r}")
        if self.accuracy_level not in (None, 0, 1, 2, 3, 4):
            raise UserError(f"accuracy_level must be 0 to 4, not {self.accuracy_level!r}")

    @property
    def quantized(self) -> bool:
        """Whether weights get codes and scales."""
        return self.precision in ("int4", "int8")

    @property
    def key(self) -> str:
        """Part of the folder's name: everything that changes the files."""
        copy = self.equivalent if self.equivalent == "plain" else f"{self.equivalent}{self.seed}"
        parts = [copy, self.precision]
        if self.quantized:
            level = "" if self.accuracy_level is None else f"a{self.accuracy_level}"
            parts += [f"b{self.block_size}", "sym" if self.is_symmetric else "asym", level]
        return "-".join([*filter(None, parts), self.device])

    def builder_options(self, tied: bool) -> list[str]:
        """KEY=VALUE words for the builder's command line."""
        words = ["hf_token=false", "hf_remote=false"]
        if not self.quantized:
            return words
        words += [f"block_size={self.block_size}", f"is_symmetric={str(self.is_symmetric).lower()}"]
        if self.accuracy_level is not None:
            words.append(f"accuracy_level={self.accuracy_level}")
        if tied and not self.is_symmetric:
            # The builder of 0.18 shares an asymmetric table in a graph that does not load.
            words.append("shared_embeddings=false")
        return words


def builder_version() -> str:
    """Version of the installed builder; a UserError that says what to install without one."""
    try:
        for package in PACKAGES:
            importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError as error:
        raise UserError(
            f"{package} is not installed: run `pip install -r requirements.txt` (a box without "
            "internet: `make wheelhouse WHEELHOUSE_ARGS=--with-onnx`, then `make gpu-install`)"
        ) from error
    return importlib.metadata.version("onnxruntime-genai-cuda")


def export_folder(config: ModelConfig, options: ExportOptions) -> CachedFolder:
    """Where the export lies when it is there; another model or builder gets another folder."""
    target = equivalent_config(config, options.equivalent)  # refuses an unknown kind
    if config.head_dim % HEAD_MULTIPLE:
        raise UserError(
            f"ONNX Runtime's attention needs a head_dim that {HEAD_MULTIPLE} divides; "
            f"{config.name} has {config.head_dim}"
        )
    if options.weights == "random":  # whatever has this shape has these weights
        version = "random" + hashlib.sha256(repr(config).encode()).hexdigest()[:12]
    else:
        version = model_version(config)[:12]
    name = f"{config.name}-{version}-{options.key}-genai{builder_version()}"
    shown = f"{target.name} as ONNX {options.precision}"
    return CachedFolder(cache_root() / "onnx" / name, shown, "ONNX export", SCHEMA, LAST_GRAPH)


def ensure_export(
    config: ModelConfig, options: ExportOptions, progress: Progress | None = None
) -> Path:
    """The verified folder of the export, made first if needed (smollm2-135m: about 10 s)."""
    cached = export_folder(config, options)

    def build(folder: Path, tell: Progress) -> dict:
        plain = options.equivalent == "plain" and options.weights == "real"
        source = ensure_model(config.name, tell) if plain else folder / "source"
        tell(f"exporting {cached.name}, once (about {'10' if plain else '20'} s) ...")
        if not plain:
            kind, seed, weights = options.equivalent, options.seed, options.weights
            save_equivalent(source, config, kind, "float32", seed, weights=weights)
        if options.weights == "random":
            _complete_random_model(source, config)
        try:
            run_builder(source, folder, options, config.tie_embeddings and plain)
        finally:
            shutil.rmtree(folder / "source", ignore_errors=True)
        write_last_position_graph(folder)
        _name_one_end_token(folder)
        return {"builder": f"onnxruntime-genai-cuda=={builder_version()}", "options": options.key}

    full = weight_bytes(config, "float32")
    if cached.find() is None:
        check_host_memory(10**9 + 3 * full, f"exporting {cached.name}", torch.device("cpu"))
    return cached.ensure(build, 2.5 * full, progress)


def _complete_random_model(folder: Path, config: ModelConfig) -> None:
    """What the builder wants beside weights of random numbers: a tokenizer and two names."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    file = folder / "config.json"
    fields = json.loads(file.read_text())
    fields |= {"architectures": [ARCHITECTURES[family(config)]], "eos_token_id": 0}
    file.write_text(json.dumps(fields, indent=2))
    nothing = Tokenizer(models.WordLevel({"": 0}, unk_token=""))
    PreTrainedTokenizerFast(tokenizer_object=nothing).save_pretrained(folder)


def _name_one_end_token(folder: Path) -> None:
    """GenAI adds a run's end-of-text token to a list in the file; it replaces a single one."""
    file = folder / "genai_config.json"
    settings = json.loads(file.read_text())
    settings["model"]["eos_token_id"] = 0
    file.write_text(json.dumps(settings, indent=4))


def run_builder(source: Path, folder: Path, options: ExportOptions, tied: bool) -> None:
    """Fill `folder` by GenAI's model builder; UserError or OSError (full disk) when it fails."""
    command = [sys.executable, "-m", BUILDER, "-i", str(source), "-o", str(folder),
               "-p", options.precision, "-e", options.device, "-c", str(folder / "work"),
               "--extra_options", *options.builder_options(tied)]  # fmt: skip
    environment = {**os.environ, **NO_TELEMETRY, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(  # noqa: S603
        command, env=environment, capture_output=True, text=True, errors="replace", check=False
    )
    shutil.rmtree(folder / "work", ignore_errors=True)
    if done.returncode == 0:
        return
    said = f"{done.stdout}\n{done.stderr}"
    if "No space left" in said or "[Errno 28]" in said:
        raise OSError(errno.ENOSPC, "No space left on device")
    if done.returncode < 0:
        raise UserError(
            f"the ONNX export was stopped by signal {-done.returncode}, probably for want of "
            "memory: close other programs, or choose a smaller model"
        )
    last = next((line for line in reversed(said.splitlines()) if line.strip()), "no message")
    raise UserError(
        f"the ONNX export failed: {last.strip()[:200]}; check that {', '.join(PACKAGES)} have the "
        "versions of requirements.txt"
    )


def main() -> int:
    """Export the embedded model ahead of time; 0, or the exit code of an error."""
    try:
        print(ensure_export(get_config("smollm2-135m"), ExportOptions()))
    except UserError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
