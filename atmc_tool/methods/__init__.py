"""Compression methods, one file each: what is trained, what is constrained, and when."""
