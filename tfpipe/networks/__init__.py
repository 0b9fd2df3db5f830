"""Layers, backbones, heads, their weights, and the arithmetic that they compute in."""
