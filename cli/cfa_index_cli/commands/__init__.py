"""A module a command: parse, one library call, render."""
