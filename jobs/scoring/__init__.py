"""Scoring: splits and inbox files, quality gates, the ledger, output files and promotion."""
