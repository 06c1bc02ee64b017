import subprocess
import sys

import pytest
from tiny_models import tiny

from inferlab.errors import UserError
from inferlab.models.config import PRESETS, HubSource, PackageSource, get_config


def test_every_preset_is_under_its_own_name_and_consistent():
    for name, config in PRESETS.items():
        assert config.name == name
        assert config.qkv_size == config.q_size + 2 * config.kv_size
        assert config.group_size * config.num_kv_heads == config.num_q_heads


def test_every_preset_has_a_pinned_source():
    for config in PRESETS.values():
        source = config.source
        pinned, digits = (
            (source.gguf_sha256, 64) if isinstance(source, PackageSource) else (source.revision, 40)
        )
        assert isinstance(source, HubSource | PackageSource)
        assert len(pinned) == digits and int(pinned, 16) > 0


def test_unknown_model_lists_what_exists_and_guesses():
    with pytest.raises(UserError, match="did you mean smollm2-135m") as caught:
        get_config("SmolLM2-135")
    assert all(name in str(caught.value) for name in PRESETS)
    assert "\n" not in str(caught.value)


def test_heads_that_cannot_be_shared_are_refused():
    with pytest.raises(UserError, match="evenly"):
        tiny(num_q_heads=5, num_kv_heads=2)


def test_shapes_and_costs_need_no_torch():
    code = "import sys, inferlab.models.cost, inferlab.models.config; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
