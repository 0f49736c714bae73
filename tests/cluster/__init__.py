"""Tests with real clusters: a scheduler, workers and a client, each a process, killed for real."""
