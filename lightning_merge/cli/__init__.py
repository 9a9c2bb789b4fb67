"""The command line; `usage` alone is imported by --help."""
