"""Input pipelines that `benchmark.py input` compares, each run by path in its own interpreter."""
