"""Where rows come from: files in several formats, downloads, generated digits."""
