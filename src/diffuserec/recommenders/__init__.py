"""Histories in, scores out: one file a method, and the folder is the list of them."""
