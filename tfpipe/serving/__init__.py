"""Serving: prediction and the page, on trained models in whatever form they have."""
