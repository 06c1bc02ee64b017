"""A real server under real load: start it, load it, compare those who load it (chapter 46)."""
