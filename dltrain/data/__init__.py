"""What makes typed batches: one file per batch type and per embedded source."""
