"""The whole study: the paper's rows as jobs, its published figures, the report and the demo."""
