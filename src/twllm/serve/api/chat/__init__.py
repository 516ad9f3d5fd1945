"""POST /v1/chat/completions: a chat with tools and pictures becomes a prompt, events become deltas."""
