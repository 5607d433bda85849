"""One module per command of the command line; each composes the rest of the package."""
