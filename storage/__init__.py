"""Storage: the formats on disk and in object stores, and their atomic writes."""
