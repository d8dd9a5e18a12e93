"""Models of runs as files that other programs read: graphs or weights, compared with the run, with their model card."""
