"""Files that cannot be torn: folders, locks, checked JSON and shard files."""
