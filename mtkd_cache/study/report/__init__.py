"""The report of a study: the paper's tables and figures with our figures beside them."""
