"""What does a faster variant of a model cost in quality, against the unquantized reference?

`text` holds what both read, `compare` how far their predictions lie apart, `task` how many
questions they answer.
Chapter: chapters/10_weight_quantization.md    Lab: labs/10_weight_quantization.ipynb
"""

from inferlab.quality.compare import QualityResult, Reference, compare
from inferlab.quality.task import (
    Question,
    TaskResult,
    load_questions,
    paired_flips,
    score,
)
from inferlab.quality.text import QualityText, calibration_ids, load_text

__all__ = [
    "QualityResult",
    "QualityText",
    "Question",
    "Reference",
    "TaskResult",
    "calibration_ids",
    "compare",
    "load_questions",
    "load_text",
    "paired_flips",
    "score",
]
