"""Dataset folder -> sample store -> augmented view."""
