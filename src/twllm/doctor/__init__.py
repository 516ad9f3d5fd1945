"""Why does this model, or this copy of it, answer differently? Checks of a folder, a GGUF file, a server; of this machine."""
