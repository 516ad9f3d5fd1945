"""`python -m twllm` and `torchrun … -m twllm`: the same as the `twllm` command."""

from twllm.cli import main

if __name__ == "__main__":
    main()
