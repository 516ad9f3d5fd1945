"""Corpus: sources → documents → steps → documents.jsonl.zst, with every drop counted by reason. No torch here.

`build_corpus` (build.py) is the stage, `read_documents` what the tokenizer and the shards read, `funnel_table`
(report.py) what a person reads. A step is `step(documents) -> documents` (steps/). Not covered yet: language
identification, privacy, near duplicates, more than one process.
"""
