"""Rows made by a model: self-play dialogues and translations into Taiwan Mandarin, checked before they are kept."""
