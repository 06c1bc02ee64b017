"""How much of the roofline does a whole server reach with as many requests as it can hold?

Chapter: chapters/46_serving_under_load.md    Lab: labs/46_serving_under_load.ipynb
"""

from __future__ import annotations

from inferlab.errors import UserError
from inferlab.models.config import ModelConfig
from inferlab.models.cost import kv_bytes_per_token, weight_bytes
from inferlab.recorder import Case
from inferlab.roofline import Ceilings
from inferlab.underload.bench import Runner, load_case
from inferlab.underload.cost import roofline_tok_per_s
from inferlab.workload import uniform_batch


def cache_room(config: ModelConfig, dtype: str, device: str, most_tokens: int) -> int:
    """Positions that fit the free memory of `device` beside the weights, at most `most_tokens`.

    A seventh of what is free is left for activations and for others. UserError when the weights
    alone do not fit.
    """
    import psutil

    if device == "cpu":
        free_bytes = psutil.virtual_memory().available
    else:
        import torch

        free_bytes = torch.cuda.mem_get_info(device)[0]
    left = free_bytes * 6 / 7 - weight_bytes(config, dtype)
    room = int(left / kv_bytes_per_token(config, dtype))
    if room < 1:
        raise UserError(f"{config.name} in {dtype} does not fit the free memory of {device}")
    return min(room, most_tokens)


def published_cases(
    runner: Runner, config: ModelConfig, dtype: str, shapes: tuple[tuple[int, int], ...],
    num_seqs: int, ceilings: Ceilings,
) -> dict[str, Case]:  # fmt: skip
    """A crowd of `num_seqs` at a time, for each (prompt, output) length; twice as many requests.

    The parameter `roofline_tok_per_s` is what no server can beat there.
    """
    cases = {}
    for prompt_len, output_len in shapes:
        lengths = (config, dtype, prompt_len, output_len)
        params = {
            "phase": "published", "model": config.name, "dtype": dtype, "prompt_len": prompt_len,
            "output_len": output_len, "num_seqs": num_seqs,
            "roofline_tok_per_s": roofline_tok_per_s(*lengths, num_seqs, ceilings),
        }  # fmt: skip
        work = uniform_batch(config.vocab_size, 2 * num_seqs, prompt_len, output_len, seed=46)
        cases[f"published/{prompt_len}-{output_len}"] = load_case(runner, work, params)
    return cases
