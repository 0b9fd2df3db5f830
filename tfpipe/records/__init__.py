"""Files of data sets and runs: records, shards, manifests, catalogs. No TensorFlow."""
