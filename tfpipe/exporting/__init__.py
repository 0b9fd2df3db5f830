"""Exporting: a trained model as files, the proof that they say what it says, and their readers."""
