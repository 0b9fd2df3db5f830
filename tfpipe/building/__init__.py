"""Photographs in, shards and manifest out. Never imports TensorFlow."""
