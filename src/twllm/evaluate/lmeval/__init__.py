"""Our tasks for EleutherAI's lm-evaluation-harness: `export` writes its YAML files, `functions` is what they call."""
