"""Work on a Dask cluster: the client, what its workers hold, tasks, and memory that they share."""
