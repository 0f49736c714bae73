"""Experiments: kill processes, fail disk operations, damage files, and check the guarantees."""
