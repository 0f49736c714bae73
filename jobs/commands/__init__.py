"""The click commands and their reports; no other package imports click."""
