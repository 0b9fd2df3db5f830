"""Files of data sets and runs: records, shards, manifests, catalogues. No TensorFlow."""
