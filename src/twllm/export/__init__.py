"""From a checkpoint to what others open (Hugging Face folder, GGUF, Ollama, int8, GPTQ, AWQ), with what each loses."""
