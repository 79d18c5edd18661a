"""Multi-teacher knowledge distillation for surgical anatomy segmentation, with the teachers run once.

The way through the package, each step reading what the one before wrote:

    dataset -> ingest -> samples -> teachers -> build -> cache -> student -> evaluate -> report

The mathematics is in `losses`, `views` and `quantise`; the networks are in `models`.
"""

__version__ = "0.1.0"
