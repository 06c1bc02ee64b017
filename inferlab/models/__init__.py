"""What is a model, in shapes, bytes and operations, and how does it get into memory?"""
