"""From shards to batches: a manifest and a split become a `tf.data.Dataset`."""
