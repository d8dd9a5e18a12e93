"""What watches a run: checkpoints, guards, records, pictures, progress."""
