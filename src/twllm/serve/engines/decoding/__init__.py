"""From logits to ids to text, the same for all engines."""
