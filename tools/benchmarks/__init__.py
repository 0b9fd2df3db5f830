"""Input pipelines that `benchmark.py input` compares. Workers are run by path, each by an interpreter of its own."""
