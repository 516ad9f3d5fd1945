"""The APIs that clients know: OpenAI's chat and completions, text-generation-inference's, the tokenizer's."""
