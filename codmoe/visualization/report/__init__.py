"""One HTML page about a run of all stages."""
