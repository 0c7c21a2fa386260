"""Getting files from elsewhere: guarded, resumable, verified, whole or not there. No torch, no model."""
