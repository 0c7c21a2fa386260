"""Fine-tuned weights: read from every format there is, folded into the model in place, taken out bit for bit."""
