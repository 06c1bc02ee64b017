"""What is continuous batching worth, and to which of its parts does the gain belong?

Chapter: chapters/41_continuous_batching.md    Lab: labs/41_continuous_batching.ipynb
"""
