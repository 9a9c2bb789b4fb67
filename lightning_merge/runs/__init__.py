"""What a run has, depends on, makes and measures, without the grammar of any command line."""
