"""Predictions for new images, from a model in any form."""
