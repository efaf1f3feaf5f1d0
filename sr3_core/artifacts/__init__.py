"""What a room leaves under root: file names, schema versions, writing, reading, verifying, leases."""
