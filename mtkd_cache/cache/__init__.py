"""The logit cache: what every teacher says of every sample, written once and read by every student."""
