"""The networks, their weights and their checkpoints."""
