"""The Dask cluster: connecting, submitting tasks, and what workers run."""
