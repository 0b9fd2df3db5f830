"""A data set on disk: checked, compared, extracted and salvaged. No TensorFlow, no numpy."""
