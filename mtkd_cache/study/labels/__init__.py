"""What pictures of other subsets and presence labels gain: arms, false alarms, results, tables."""
