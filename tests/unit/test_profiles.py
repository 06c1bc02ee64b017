"""Profiles follow GPU memory, and an override is honest about what is missing."""

import pytest

from inferlab import profiles
from inferlab.errors import UserError
from inferlab.models.config import get_config


@pytest.mark.parametrize(
    ("memory_bytes", "name"),
    [(8e9, "tiny"), (15.8e9, "gpu16"), (24e9, "gpu24"), (80e9, "gpu80"), (150e9, "gpu80")],
)
def test_the_profile_follows_the_memory(memory_bytes, name):
    assert profiles.profile_for_memory(int(memory_bytes)) == name


@pytest.mark.parametrize("name", profiles.PROFILES)
def test_every_model_of_a_profile_was_trained_for_its_longest_text(name):
    profile = profiles.PROFILES[name]
    longest = max(*profile.prompt_lens, *profile.context_lens) + profile.output_len - 1
    for model in {profile.real_model, *profile.speed_models}:
        assert longest <= get_config(model).max_context_len


@pytest.mark.parametrize("name", profiles.PROFILES)
def test_long_contexts_are_within_what_the_largest_model_was_trained_for(name):
    profile = profiles.PROFILES[name]
    lengths = profile.long_context_lens
    assert len(lengths) >= 3 and list(lengths) == sorted(lengths)
    # With room for the steps that are timed there.
    assert lengths[-1] + 64 <= get_config(profile.speed_models[-1]).max_context_len
    assert name != "tiny" or lengths[-1] <= 2048


def test_an_unknown_override_names_what_exists(monkeypatch):
    monkeypatch.setenv("INFERLAB_PROFILE", "huge")
    with pytest.raises(UserError, match="tiny, gpu16, gpu24, gpu80"):
        profiles.current_profile()


def test_a_gpu_profile_without_a_gpu_is_refused(monkeypatch):
    monkeypatch.setenv("INFERLAB_PROFILE", "gpu80")
    monkeypatch.setattr(profiles, "_detected", lambda: "tiny")
    with pytest.raises(UserError, match="needs a CUDA device"):
        profiles.current_profile()


def test_a_cuda_build_of_torch_without_a_device_means_tiny(monkeypatch):
    import torch

    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    profiles._detected.cache_clear()
    monkeypatch.delenv("INFERLAB_PROFILE", raising=False)
    assert profiles.current_profile().name == "tiny"
    profiles._detected.cache_clear()
