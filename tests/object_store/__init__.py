"""An S3 server on loopback, and a proxy that injects failures."""
