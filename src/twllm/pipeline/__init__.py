"""A recipe from end to end: its checks, its stages in order, what is done or stale, and the report."""
