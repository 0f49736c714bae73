"""Where rows come from: IDX files, downloads, generated digits."""
