"""How does our engine answer over HTTP, in the form that the field's clients speak?

Chapter: chapters/46_serving_under_load.md    Lab: labs/46_serving_under_load.ipynb
"""
