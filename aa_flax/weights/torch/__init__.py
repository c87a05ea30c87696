"""PyTorch's files and names: `reader` opens a file, `layout` cleans its names, `names` says what they mean here."""
