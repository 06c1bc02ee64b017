"""What does a batch cost and win: arithmetic, queues, emulation, cases to time (chapter 40)."""
