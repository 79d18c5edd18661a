"""Measurements of every step against its limit: `mtkd-cache bench`."""
