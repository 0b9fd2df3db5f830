"""Header, orientation, decoding and resizing of one image file, with and without TensorFlow."""
