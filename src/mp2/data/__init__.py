"""Raw files to encoded batches."""
