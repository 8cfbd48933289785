"""The verbs of the command line, one module each: an example, its arguments, and what it calls."""
