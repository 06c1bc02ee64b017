"""Do answers to the exercises hold? Each lab's checks say what differs, not only that it does."""

from inferlab.exercises.judge import judge_choice, judge_number

__all__ = ["judge_choice", "judge_number"]
