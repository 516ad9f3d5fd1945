"""Everything that computes with torch: one runner for answers, two ways through many known prompts, pictures."""
