"""One image file: its header, its orientation, its decoding and its resizing, with and without TensorFlow."""
