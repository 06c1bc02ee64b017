"""What is this machine, what can it do at most, and what does its datasheet say?"""
