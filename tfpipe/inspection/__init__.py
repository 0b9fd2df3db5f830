"""Looking at a data set on disk: checked, shown, compared, taken apart and rescued. No TensorFlow, no numpy."""
