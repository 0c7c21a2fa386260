"""Replicate's HTTP API in front of Cog workers: see docs/gateway.md."""
