"""Checking, comparing, extracting and salvaging a data set. No TensorFlow, no numpy."""
