"""How do many requests share one model: who runs in the next step, and from which memory?

Chapters: chapters/40_batching.md, chapters/41_continuous_batching.md
"""
