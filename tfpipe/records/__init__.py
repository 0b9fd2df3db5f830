"""The ground floor: what is on disk, byte by byte. No TensorFlow, no numpy."""
