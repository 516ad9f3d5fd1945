"""What a server is beside its answers: which models, how many at once, for whom; and what is told of it."""
