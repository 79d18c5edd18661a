"""The report: the paper's tables and figures with our numbers beside the paper's own."""

from mtkd_cache.report.write import write_report

__all__ = ["write_report"]
