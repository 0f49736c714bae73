"""The click commands by subject, and what they print: thin, and alone in knowing click."""
