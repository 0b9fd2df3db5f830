"""Tower A: photographs in, shards and manifest out. Never imports TensorFlow."""
