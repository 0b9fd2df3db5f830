"""Building a data set: images in, shards and manifest out. Never imports TensorFlow."""
