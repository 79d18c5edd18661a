"""The logit cache: the logits of every teacher for every sample, computed once and read by every student."""
