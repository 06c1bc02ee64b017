"""How is a whole decoder observed, made easier to round, rounded, and trained to bear it?

Nothing is imported here.
Chapter: chapters/10_quantization.md    Lab: labs/10_quantization.ipynb
"""
