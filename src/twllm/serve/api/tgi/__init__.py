"""text-generation-inference's API."""
