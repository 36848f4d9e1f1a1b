"""What the commands do, as functions: extract, build, train, evaluate, query, score."""
