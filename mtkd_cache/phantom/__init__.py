"""A synthetic dataset in the layout of the Dresden Surgical Anatomy Dataset: drawing (scene.py) and writing (dataset.py)."""
