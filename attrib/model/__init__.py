"""A vision-language model behind one interface: components, encoding, batches, checkpoints."""
