"""Where does a verified copy of a model's weights lie, and how does it get there?

A model is one folder of safetensors and tokenizer files below `cache_root()`.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from inferlab.errors import UserError
from inferlab.models import fetch
from inferlab.models.cachefolder import CachedFolder, cache_root
from inferlab.models.config import ModelConfig, PackageSource, get_config
from inferlab.models.cost import weight_bytes
from inferlab.models.fetch import Progress

SCHEMA = "inferlab.model/1"


def model_version(config: ModelConfig) -> str:
    """The hash or the revision that the published weights are known by."""
    source = config.source
    if source is None:
        raise UserError(f"{config.name} has no published weights: use weights='random'")
    return source.gguf_sha256 if isinstance(source, PackageSource) else source.revision


def model_folder(config: ModelConfig) -> Path:
    """Where the model lies when it is there; a new revision gets a new folder."""
    return cache_root() / "models" / f"{config.name}-{model_version(config)[:12]}"


def _cached(config: ModelConfig) -> CachedFolder:
    return CachedFolder(model_folder(config), config.name, "model", SCHEMA, ".safetensors")


def find_model(name: str) -> Path | None:
    """The verified folder of `name`, None when it is not there; UserError when it is damaged."""
    return _cached(get_config(name)).find()


def model_sha256(name: str) -> str | None:
    """sha256 over the recorded hashes of the weight files; None when the model is not there."""
    cached = _cached(get_config(name))
    if cached.find() is None:
        return None
    hashes = cached.source()["files"]
    weights = [value for key, value in sorted(hashes.items()) if key.endswith(".safetensors")]
    if len(weights) == 1:
        return weights[0]
    return hashlib.sha256("".join(weights).encode()).hexdigest()


def ensure_model(name: str, progress: Progress | None = None) -> Path:
    """The verified folder of `name`, made first if needed (smollm2-135m: about 20 s, 270 MB).

    `progress` gets one line of text before each long part; by default it goes to stderr.
    """
    config = get_config(name)

    def build(folder: Path, tell: Progress) -> dict:
        if isinstance(config.source, PackageSource):
            return fetch.from_package(config, folder, tell)
        return fetch.from_hub(config, folder, tell)

    return _cached(config).ensure(build, 1.3 * weight_bytes(config, "bfloat16"), progress)
