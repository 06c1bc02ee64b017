"""How are tokens chosen from logits, one step after another?"""

from inferlab.decoding.generate import generate
from inferlab.decoding.sampling import GREEDY, Sampling

__all__ = ["GREEDY", "Sampling", "generate"]
