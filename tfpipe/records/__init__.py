"""What is on disk, byte by byte: records, shards, manifests, catalogs, run folders. No TensorFlow, no numpy."""
