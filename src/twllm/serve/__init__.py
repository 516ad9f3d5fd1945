"""Answering questions: engines, the OpenAI- and TGI-compatible server, the web pages and the terminal chat.

    engines/     prompt ids in, token events out
    operation/   what a server is beside its answers: models, places, limits, keys, logs, metrics, start and end
    api/         OpenAI's and text-generation-inference's routes, their shapes and streams
    web/         the pages and their own routes: ratings, comparison, arena
    app.py       all routes and what stands around them; start.py opens the models and runs it (`twllm serve`)
    terminal.py  `twllm chat`

Each folder imports itself, errors.py and the folders above it in this list; nothing is imported here, `twllm --help` stays light.
"""
