"""POST /v1/completions: raw prompts, echo, log-probabilities."""
