"""The command line; --help imports only `usage`."""
