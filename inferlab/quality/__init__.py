"""What does a faster variant of a model cost in quality, against the unquantized reference?

`text` holds what both read, `compare` how far their predictions lie apart, `task` how many
questions they answer.
Chapter: chapters/10_quantization.md    Lab: labs/10_quantization.ipynb
"""
