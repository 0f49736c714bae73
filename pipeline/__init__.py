"""Data in motion: sources, the ingest, the order and the stream of mini-batches."""
