"""A real S3 API over HTTP on loopback, and a proxy before it that makes trouble."""
