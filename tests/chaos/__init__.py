"""Experiments that kill processes, fail disk operations, damage files, and check the promises."""
