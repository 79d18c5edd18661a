"""The networks: one class for teachers and students, pretrained weights, and parameters beside the paper's."""

from mtkd_cache.models.network import PAPER_ARCHITECTURES, Network, build, upsample
from mtkd_cache.models.pretrained import load_pretrained, paper_source
from mtkd_cache.models.table import parameter_table

__all__ = ["PAPER_ARCHITECTURES", "Network", "build", "load_pretrained", "paper_source", "parameter_table", "upsample"]
