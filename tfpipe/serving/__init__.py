"""Serving: prediction now; export and the page later. It takes trained models as they are."""
