"""From files to tensors: records read, checked, encoded, planned into batches."""
