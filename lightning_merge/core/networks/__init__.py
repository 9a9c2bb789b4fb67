"""Networks seen from inside: what goes into their layers, what they answer, what M-Loss says."""
