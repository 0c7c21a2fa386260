"""Runs beside coglets: takes jobs from the gateway, does them, brings back what came of them. See docs/gateway.md."""
