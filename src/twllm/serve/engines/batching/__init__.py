"""Continuous batching over any runner (ids in, logits out); no torch."""
