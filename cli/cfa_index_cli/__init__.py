"""The command line of cfa-index."""
