"""A trained model as files, and the proof that they reproduce its outputs."""
