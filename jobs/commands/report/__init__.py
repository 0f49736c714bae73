"""The report: a run's results, or a comparison of several runs, as one HTML file."""
