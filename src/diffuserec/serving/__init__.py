"""Serving: from a saved model to lists for people and other systems."""
