"""Runs: their folder, record, inputs, stages and results, independent of the command line."""
