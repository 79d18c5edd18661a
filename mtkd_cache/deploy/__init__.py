"""A trained network where it is used: pictures and videos in, masks and overlays out."""
