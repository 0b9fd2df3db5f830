"""Evaluation of predictions that are numbers, or places in an order."""
