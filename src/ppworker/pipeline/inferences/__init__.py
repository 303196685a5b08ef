"""Predictions made elsewhere become items and annotations."""
