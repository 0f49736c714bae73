"""Tests with real clusters of scheduler, workers and client processes, some of them killed."""
